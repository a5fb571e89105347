// What a kernel may use, once for each instruction set. The rest of the kernels is written in these few words.
//
//   Words   32 integers of 16 bits: a quarter of a block of codes, or the numbers they are multiplied with
//   Ints    16 integers of 32 bits
//   Floats  16 floats of 32 bits
//
// Everything here is static and inside the namespace of its level: a function that the linker could share between
// levels might be taken from one that the processor does not have.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(QLLM_LEVEL_AVX512_VNNI) || defined(QLLM_LEVEL_AMX)
#include "vectors_avx512.h"
#elif defined(QLLM_LEVEL_AVX2) || defined(QLLM_LEVEL_AVX2_VNNI)
#include "vectors_avx2.h"
#else
#include "vectors_portable.h"
#endif

#define QLLM_MEMBER inline __attribute__((always_inline))

// F(0) F(1) ... : accumulators are variables with a number in their name. Of an array, compilers keep a copy in memory.
#define QLLM_4(F) F(0) F(1) F(2) F(3)
#define QLLM_16(F) QLLM_4(F) F(4) F(5) F(6) F(7) F(8) F(9) F(10) F(11) F(12) F(13) F(14) F(15)
