// 512-bit registers: one register each for Words, Ints and Floats.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "qllm_cpu.h"

namespace QLLM_NAMESPACE {

#define QLLM_INLINE static inline __attribute__((always_inline))
#define QLLM_HAS_BYTES 1      // products of unsigned with signed bytes: four times as many a second as those of words
#define QLLM_HAS_HALVES 1     // codes of half a block as bytes
#define QLLM_HAS_TILES 1      // tile registers may be lent to it
#define QLLM_ACCUMULATORS 24  // of a tile, in 32 registers
#define QLLM_UNITS 7          // sizes of a unit that there are kernels for: 4, 2 and 1 quarters of a block
#define QLLM_ROW_TOKENS 4     // at a time, when rows are read

typedef __m512i Words;
typedef __m512i Ints;
typedef __m512 Floats;

QLLM_INLINE Words load_words(const void* p) { return _mm512_loadu_si512(p); }
QLLM_INLINE void store_words(void* p, Words v) { _mm512_storeu_si512(p, v); }
QLLM_INLINE Words words_zero() { return _mm512_setzero_si512(); }
QLLM_INLINE Words words_all(int16_t v) { return _mm512_set1_epi16(v); }
QLLM_INLINE Words words_from(Ints v) { return v; }
QLLM_INLINE Words words_or(Words a, Words b) { return _mm512_or_si512(a, b); }
QLLM_INLINE Words words_minus(Words a, int16_t b) { return _mm512_sub_epi16(a, _mm512_set1_epi16(b)); }

// Written as assembly because gcc 12 copies the accumulator of these intrinsics to another register and back each time.

// Acc + a[2i] b[2i] + a[2i+1] b[2i+1] in lane i.
QLLM_INLINE Ints dot_words(Ints acc, Words a, Words b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
}
QLLM_INLINE Ints dot_words(Ints acc, Words a, const int16_t* b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "m"(*(const __m512i_u*)b));
    return acc;
}
// The same with one pair for all lanes.
QLLM_INLINE Ints dot_pair(Ints acc, Words a, Words pair) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(pair));
    return acc;
}
// Acc + four products of unsigned with signed bytes in each lane.
QLLM_INLINE Ints dot_bytes(Ints acc, Ints unsigned_bytes, Ints signed_bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "v"(signed_bytes));
    return acc;
}
QLLM_INLINE Ints dot_bytes(Ints acc, Ints unsigned_bytes, const int8_t* signed_bytes) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(unsigned_bytes), "m"(*(const __m512i_u*)signed_bytes));
    return acc;
}
QLLM_INLINE Ints bytes_minus(Ints a, int8_t b) { return _mm512_sub_epi8(a, _mm512_set1_epi8(b)); }
QLLM_INLINE Ints bytes_all(int8_t v) { return _mm512_set1_epi8(v); }
QLLM_INLINE Ints ints_from(Words v) { return v; }
QLLM_INLINE Words words_pair(const void* pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return _mm512_set1_epi32(both);
}
// Low bytes of 32 words.
QLLM_INLINE void store_low_bytes(int8_t* p, Words v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi16_epi8(v)); }

QLLM_INLINE Ints ints_zero() { return _mm512_setzero_si512(); }
QLLM_INLINE Ints ints_first(int32_t v) { return _mm512_zextsi128_si512(_mm_cvtsi32_si128(v)); }
QLLM_INLINE Ints ints_load(const void* p) { return _mm512_loadu_si512(p); }
QLLM_INLINE void ints_store(void* p, Ints v) { _mm512_storeu_si512(p, v); }
QLLM_INLINE Ints ints_negative_product(Ints a, Ints b) {
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_mullo_epi32(a, b));
}
QLLM_INLINE Ints ints_all(int32_t v) { return _mm512_set1_epi32(v); }
// it wraps, which the sums of gcc's own reduction must not
QLLM_INLINE int32_t ints_sum(Ints v) {
    const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
// n <= 16 bytes as integers, 0 after them.
QLLM_INLINE Ints ints_from_bytes(const uint8_t* p, int n) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8((__mmask16)((1u << n) - 1), p));
}

QLLM_INLINE Floats floats_zero() { return _mm512_setzero_ps(); }
QLLM_INLINE Floats floats_all(float v) { return _mm512_set1_ps(v); }
QLLM_INLINE Floats floats_load(const float* p) { return _mm512_loadu_ps(p); }
QLLM_INLINE void floats_store(float* p, Floats v) { _mm512_storeu_ps(p, v); }
QLLM_INLINE Floats floats_from(Ints v) { return _mm512_cvtepi32_ps(v); }
QLLM_INLINE Floats floats_add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
QLLM_INLINE Floats floats_mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
QLLM_INLINE Floats floats_div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
QLLM_INLINE Floats floats_min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
QLLM_INLINE Floats floats_max(Floats a, Floats b) { return _mm512_max_ps(a, b); }
// a b + c, and c - a b
QLLM_INLINE Floats floats_fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
QLLM_INLINE Floats floats_fnma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
QLLM_INLINE float floats_sum(Floats v) { return _mm512_reduce_add_ps(v); }
QLLM_INLINE float floats_least(Floats v) { return _mm512_reduce_min_ps(v); }
QLLM_INLINE float floats_largest(Floats v) { return _mm512_reduce_max_ps(v); }
// Round half to even.
QLLM_INLINE Ints ints_round(Floats v) { return _mm512_cvtps_epi32(v); }
QLLM_INLINE Floats floats_round(Floats v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// The sums of four vectors.
QLLM_INLINE void floats_sum4(const Floats v[4], float* out) {
    // pairs of vectors side by side, halved twice inside their 128-bit lanes, then the lanes added
    __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

// n <= 16 numbers of a type, 0 after them.
QLLM_INLINE Floats floats_from_memory(const void* p, int type, int n) {
    __mmask16 mask = (__mmask16)((1u << n) - 1);
    if (type == QLLM_FLOAT32) return _mm512_maskz_loadu_ps(mask, p);
    __m256i half = _mm256_maskz_loadu_epi16(mask, p);
    if (type == QLLM_FLOAT16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
// Store n <= 16 numbers in a type, rounded half to even.
QLLM_INLINE void floats_to_memory(void* p, int type, int n, Floats v) {
    __mmask16 mask = (__mmask16)((1u << n) - 1);
    if (type == QLLM_FLOAT32) {
        _mm512_mask_storeu_ps(p, mask, v);
    } else if (type == QLLM_FLOAT16) {
        _mm256_mask_storeu_epi16(p, mask, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
        __m512i bits = _mm512_castps_si512(v);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
        __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF)), 16);
        __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
        rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7FC0));
        _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(rounded));
    }
}
// The nearest multiple of 65536, over 65536.
QLLM_INLINE Ints ints_high_word(Ints v) { return _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(32768)), 16); }
QLLM_INLINE Ints ints_times_65536(Ints v) { return _mm512_slli_epi32(v, 16); }
QLLM_INLINE Ints ints_times_32768(Ints v) { return _mm512_slli_epi32(v, 15); }
QLLM_INLINE Ints ints_times_256(Ints v) { return _mm512_slli_epi32(v, 8); }
QLLM_INLINE Ints ints_plus(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
QLLM_INLINE Ints ints_minus(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
// 16 integers of 16 bits.
QLLM_INLINE void ints_to_words(int16_t* p, Ints v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(v)); }
// The lowest byte of each as a signed number, and what is left of it in base 256.
QLLM_INLINE Ints ints_shift_right_8(Ints v) { return _mm512_srli_epi32(v, 8); }
QLLM_INLINE Ints ints_low_digit(Ints v) { return _mm512_srai_epi32(_mm512_slli_epi32(v, 24), 24); }
QLLM_INLINE Ints ints_next_digit(Ints v) { return _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8); }
// The lowest bytes of 16 integers, and those of two times 16 in turns.
QLLM_INLINE void ints_low_bytes(void* p, Ints v) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(v)); }
QLLM_INLINE void ints_low_bytes_in_turns(void* p, Ints even, Ints odd) {
    const __m512i low = _mm512_and_si512(even, _mm512_set1_epi32(255)), words = _mm512_or_si512(low, _mm512_slli_epi32(odd, 8));
    _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(words));
}
// Every 16th float from p: one lane of 16 vectors that follow each other.
QLLM_INLINE Floats floats_column(const float* p) {
    const __m512i steps = _mm512_slli_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), 4);
    return _mm512_i32gather_ps(steps, p, 4);
}

// Quarter J of the planes of a field in a whole block of 128 codes (see qllm_hf/layout.py), at bit SHIFT of the code.
template <int J>
QLLM_INLINE Words field8(const uint8_t* p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)(p + 32 * J)));
}
template <int J>
QLLM_INLINE Words field4(const uint8_t* p) {
    __m512i v = _mm512_loadu_si512(p);  // 32 words, 4 planes
    if (J == 3) return _mm512_srli_epi16(v, 12);
    return _mm512_and_si512(J ? _mm512_srli_epi16(v, 4 * J) : v, _mm512_set1_epi16(15));
}
template <int J, int SHIFT>
QLLM_INLINE Words field2(const uint8_t* p) {
    __m512i v = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p));  // 16 words, 8 planes: two planes a register
    constexpr int first = 4 * J, before = first < SHIFT ? SHIFT : 0, right = before ? first : first - SHIFT;
    if (before) v = _mm512_slli_epi16(v, before);
    const __m512i shifts = _mm512_inserti64x4(_mm512_set1_epi16(right), _mm256_set1_epi16(right + 2), 1);
    return _mm512_and_si512(_mm512_srlv_epi16(v, shifts), _mm512_set1_epi16(3 << SHIFT));
}
template <int J, int SHIFT>
QLLM_INLINE Words field1(const uint8_t* p) {
    __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));  // 8 words, 16 planes: four planes a register
    constexpr int first = 4 * J, before = first < SHIFT ? SHIFT - first : 0, right = before ? 0 : first - SHIFT;
    if (before) v = _mm512_slli_epi16(v, before);
    const __m512i shifts = _mm512_set_epi16(
        right + 3, right + 3, right + 3, right + 3, right + 3, right + 3, right + 3, right + 3, right + 2, right + 2, right + 2,
        right + 2, right + 2, right + 2, right + 2, right + 2, right + 1, right + 1, right + 1, right + 1, right + 1, right + 1,
        right + 1, right + 1, right, right, right, right, right, right, right, right);
    return _mm512_and_si512(_mm512_srlv_epi16(v, shifts), _mm512_set1_epi16(1 << SHIFT));
}
// Half H of a block as bytes. Byte 2i is code 32 H + i and byte 2i + 1 is code 64 + 32 H + i, since the planes of a block
// go through the low bytes of all its words first.
template <int H>
QLLM_INLINE Ints half4_of(Words v) {
    return _mm512_and_si512(H ? _mm512_srli_epi16(v, 4) : v, _mm512_set1_epi8(15));
}
template <int H>
QLLM_INLINE Ints half4(const uint8_t* p) {
    return half4_of<H>(_mm512_loadu_si512(p));
}
// The first words (bytes) from p, 0 after them.
QLLM_INLINE Words load_first_words(const uint8_t* p, int count) { return _mm512_maskz_loadu_epi16(count < 32 ? (1u << count) - 1 : ~0u, p); }
QLLM_INLINE Ints load_bytes(const uint8_t* p, int count) {
    if (count <= 0) return _mm512_setzero_si512();
    return _mm512_maskz_loadu_epi8(count < 64 ? (1ull << count) - 1 : ~0ull, p);
}
// Planes of a field, each word taken from where `source` says, shifted, masked in both bytes, and moved to bit SHIFT.
template <int SHIFT, int MASK>
QLLM_INLINE Ints planes_of(Words v, const uint16_t* source, const uint16_t* shift) {
    const __m512i moved = _mm512_srlv_epi16(_mm512_permutexvar_epi16(_mm512_loadu_si512(source), v), _mm512_loadu_si512(shift));
    return _mm512_slli_epi16(_mm512_and_si512(moved, _mm512_set1_epi8(MASK)), SHIFT);
}
template <int H, int SHIFT>
QLLM_INLINE Ints half2(const uint8_t* p) {
    __m512i v = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p));
    constexpr int first = 4 * H, before = first < SHIFT ? SHIFT : 0, right = before ? first : first - SHIFT;
    if (before) v = _mm512_slli_epi16(v, before);
    const __m512i shifts = _mm512_inserti64x4(_mm512_set1_epi16(right), _mm256_set1_epi16(right + 2), 1);
    return _mm512_and_si512(_mm512_srlv_epi16(v, shifts), _mm512_set1_epi8(3 << SHIFT));
}
template <int H, int SHIFT>
QLLM_INLINE Ints half1(const uint8_t* p) {
    // bit 4 H + n of each byte goes to bit SHIFT of the same byte: a rotation does not care which way that is
    const __m512i v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
    constexpr int right = 4 * H - SHIFT + 32;
    const __m512i turns = _mm512_set_epi32(right + 3, right + 3, right + 3, right + 3, right + 2, right + 2, right + 2, right + 2,
                                           right + 1, right + 1, right + 1, right + 1, right, right, right, right);
    return _mm512_and_si512(_mm512_rorv_epi32(v, turns), _mm512_set1_epi8((char)(1 << SHIFT)));
}
// 32 words shifted right, and masked.
QLLM_INLINE Words words_bits(Words v, int shift, int16_t mask) {
    return _mm512_and_si512(_mm512_srl_epi16(v, _mm_cvtsi32_si128(shift)), _mm512_set1_epi16(mask));
}
QLLM_INLINE Words words_left(Words v, int shift) { return _mm512_sll_epi16(v, _mm_cvtsi32_si128(shift)); }

}  // namespace QLLM_NAMESPACE
