// What quantizing and dequantizing need beyond vectors.h: 32 numbers at a time as a pair of Floats.
//
// The order of the 32 numbers in a pair depends on their type, and is the one that costs least: bfloat16 are read as
// those with even and those with odd index. `pair_words`, `pair_codes` and `pair_pack` know the order.
//
//   pair_load<TYPE>(p, &a, &b)    32 numbers in memory
//   pair_words<TYPE>(a, b)        integers of a pair as Words, in their natural order
//   pair_codes<TYPE>(w, &a, &b)   the other way, as floats
//   pair_store<TYPE>(p, a, b)     rounded half to even
//
//   words_plus_saturating         signed;  words_minus_unsigned  not below 0
//   words_most, ints_most         the larger of each two as signed integers, ..._unsigned as unsigned ones
//   words_largest, ints_largest   the largest one, as unsigned integers
//   bytes, fold2, fold1           low bytes of 32 words; a field of 2 bits, of 1 bit, of a block whose codes lie in the
//                                 four nibbles of 32 words
#pragma once

#include "vectors.h"

#if defined(QLLM_LEVEL_AVX512_VNNI) || defined(QLLM_LEVEL_AMX)
#include "pairs_avx512.h"
#elif defined(QLLM_LEVEL_AVX2) || defined(QLLM_LEVEL_AVX2_VNNI)
#include "pairs_avx2.h"
#else
#include "pairs_portable.h"
#endif
