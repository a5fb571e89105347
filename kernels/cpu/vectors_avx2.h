// 256-bit registers: two registers each for Words, Ints and Floats.
#pragma once

#include <immintrin.h>
#include <string.h>

#include "qllm_cpu.h"

namespace QLLM_NAMESPACE {

#define QLLM_INLINE static inline __attribute__((always_inline))
// 16 registers in all: accumulators of a tile must leave room for the columns.
#define QLLM_ACCUMULATORS 6
#define QLLM_UNITS 5
#define QLLM_ROW_TOKENS 2

#ifdef QLLM_LEVEL_AVX2_VNNI
#define QLLM_HAS_BYTES 1
#endif

struct Words {
    __m256i a, b;
};
struct Ints {
    __m256i a, b;
};
struct Floats {
    __m256 a, b;
};

QLLM_INLINE Words load_words(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
QLLM_INLINE void store_words(void* p, Words v) {
    _mm256_storeu_si256((__m256i*)p, v.a);
    _mm256_storeu_si256((__m256i*)p + 1, v.b);
}
QLLM_INLINE Words words_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
QLLM_INLINE Words words_from(Ints v) { return {v.a, v.b}; }
QLLM_INLINE Words words_or(Words a, Words b) { return {_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)}; }
QLLM_INLINE Words words_minus(Words a, int16_t b) {
    const __m256i all = _mm256_set1_epi16(b);
    return {_mm256_sub_epi16(a.a, all), _mm256_sub_epi16(a.b, all)};
}
QLLM_INLINE Words words_bits(Words v, int shift, int16_t mask) {
    const __m256i all = _mm256_set1_epi16(mask);
    const __m128i count = _mm_cvtsi32_si128(shift);
    return {_mm256_and_si256(_mm256_srl_epi16(v.a, count), all), _mm256_and_si256(_mm256_srl_epi16(v.b, count), all)};
}
QLLM_INLINE Words words_left(Words v, int shift) {
    const __m128i count = _mm_cvtsi32_si128(shift);
    return {_mm256_sll_epi16(v.a, count), _mm256_sll_epi16(v.b, count)};
}

QLLM_INLINE __m256i add_products(__m256i acc, __m256i a, __m256i b) {
#ifdef QLLM_LEVEL_AVX2_VNNI
    return _mm256_dpwssd_avx_epi32(acc, a, b);
#else
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
#endif
}
QLLM_INLINE Ints dot_words(Ints acc, Words a, Words b) { return {add_products(acc.a, a.a, b.a), add_products(acc.b, a.b, b.b)}; }
QLLM_INLINE Ints dot_words(Ints acc, Words a, const int16_t* b) { return dot_words(acc, a, load_words(b)); }
QLLM_INLINE Ints dot_pair(Ints acc, Words a, Words pair) { return dot_words(acc, a, pair); }
QLLM_INLINE Ints ints_from(Words v) { return {v.a, v.b}; }
QLLM_INLINE Words words_pair(const void* pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return {_mm256_set1_epi32(both), _mm256_set1_epi32(both)};
}
QLLM_INLINE Ints ints_plus(Ints a, Ints b) { return {_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)}; }
#ifdef QLLM_HAS_BYTES
QLLM_INLINE Words words_all(int16_t v) { return {_mm256_set1_epi16(v), _mm256_set1_epi16(v)}; }
QLLM_INLINE Ints dot_bytes(Ints acc, Ints unsigned_bytes, Ints signed_bytes) {
    return {_mm256_dpbusd_avx_epi32(acc.a, unsigned_bytes.a, signed_bytes.a), _mm256_dpbusd_avx_epi32(acc.b, unsigned_bytes.b, signed_bytes.b)};
}
// The lowest bytes of 16 integers.
QLLM_INLINE void ints_low_bytes(void* p, Ints v) {
    const __m256i byte = _mm256_set1_epi32(255);
    const __m256i words = _mm256_packus_epi32(_mm256_and_si256(v.a, byte), _mm256_and_si256(v.b, byte));
    const __m256i ordered = _mm256_permute4x64_epi64(words, 0xD8);
    _mm_storeu_si128((__m128i*)p, _mm_packus_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1)));
}
QLLM_INLINE void store_low_bytes(int8_t* p, Words v) {
    _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(_mm256_packs_epi16(v.a, v.b), 0xD8));
}
#endif

QLLM_INLINE Ints ints_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
QLLM_INLINE Ints ints_first(int32_t v) { return {_mm256_zextsi128_si256(_mm_cvtsi32_si128(v)), _mm256_setzero_si256()}; }
QLLM_INLINE Ints ints_load(const void* p) {
    return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)};
}
QLLM_INLINE void ints_store(void* p, Ints v) {
    _mm256_storeu_si256((__m256i*)p, v.a);
    _mm256_storeu_si256((__m256i*)p + 1, v.b);
}
QLLM_INLINE Ints ints_all(int32_t v) { return {_mm256_set1_epi32(v), _mm256_set1_epi32(v)}; }
QLLM_INLINE Ints ints_minus(Ints a, Ints b) { return {_mm256_sub_epi32(a.a, b.a), _mm256_sub_epi32(a.b, b.b)}; }
QLLM_INLINE Ints ints_negative_product(Ints a, Ints b) {
    return ints_minus(ints_zero(), {_mm256_mullo_epi32(a.a, b.a), _mm256_mullo_epi32(a.b, b.b)});
}
QLLM_INLINE int32_t ints_sum(Ints v) {
    const __m256i eight = _mm256_add_epi32(v.a, v.b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
}
QLLM_INLINE Ints ints_from_bytes(const uint8_t* p, int n) {
    uint8_t bytes[16] = {0};
    memcpy(bytes, p, n);
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)bytes)), _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(bytes + 8)))};
}
QLLM_INLINE Ints ints_high_word(Ints v) {
    const __m256i half = _mm256_set1_epi32(32768);
    return {_mm256_srai_epi32(_mm256_add_epi32(v.a, half), 16), _mm256_srai_epi32(_mm256_add_epi32(v.b, half), 16)};
}
QLLM_INLINE Ints ints_times_256(Ints v) { return {_mm256_slli_epi32(v.a, 8), _mm256_slli_epi32(v.b, 8)}; }
QLLM_INLINE Ints ints_times_65536(Ints v) { return {_mm256_slli_epi32(v.a, 16), _mm256_slli_epi32(v.b, 16)}; }
QLLM_INLINE Ints ints_shift_right_8(Ints v) { return {_mm256_srli_epi32(v.a, 8), _mm256_srli_epi32(v.b, 8)}; }
QLLM_INLINE Ints ints_low_digit(Ints v) {
    return {_mm256_srai_epi32(_mm256_slli_epi32(v.a, 24), 24), _mm256_srai_epi32(_mm256_slli_epi32(v.b, 24), 24)};
}
QLLM_INLINE void ints_to_words(int16_t* p, Ints v) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(v.a, v.b), 0xD8);
    _mm256_storeu_si256((__m256i*)p, words);
}

QLLM_INLINE Floats floats_zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
QLLM_INLINE Floats floats_all(float v) { return {_mm256_set1_ps(v), _mm256_set1_ps(v)}; }
QLLM_INLINE Floats floats_load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
QLLM_INLINE void floats_store(float* p, Floats v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
QLLM_INLINE Floats floats_from(Ints v) { return {_mm256_cvtepi32_ps(v.a), _mm256_cvtepi32_ps(v.b)}; }
QLLM_INLINE Floats floats_add(Floats a, Floats b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
QLLM_INLINE Floats floats_mul(Floats a, Floats b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
QLLM_INLINE Floats floats_div(Floats a, Floats b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
QLLM_INLINE Floats floats_min(Floats a, Floats b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
QLLM_INLINE Floats floats_max(Floats a, Floats b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
QLLM_INLINE Floats floats_fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)}; }
QLLM_INLINE Floats floats_fnma(Floats a, Floats b, Floats c) { return {_mm256_fnmadd_ps(a.a, b.a, c.a), _mm256_fnmadd_ps(a.b, b.b, c.b)}; }
QLLM_INLINE Ints ints_round(Floats v) { return {_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b)}; }
QLLM_INLINE Floats floats_round(Floats v) {
    enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    return {_mm256_round_ps(v.a, NEAREST), _mm256_round_ps(v.b, NEAREST)};
}
QLLM_INLINE float floats_sum(Floats v) {
    const __m256 eight = _mm256_add_ps(v.a, v.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}
QLLM_INLINE float floats_least(Floats v) {
    const __m256 eight = _mm256_min_ps(v.a, v.b);
    __m128 four = _mm_min_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_min_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_min_ss(four, _mm_shuffle_ps(four, four, 1)));
}
QLLM_INLINE float floats_largest(Floats v) {
    const __m256 eight = _mm256_max_ps(v.a, v.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}
QLLM_INLINE void floats_sum4(const Floats v[4], float* out) {
    const __m256 ab = _mm256_hadd_ps(_mm256_add_ps(v[0].a, v[0].b), _mm256_add_ps(v[1].a, v[1].b));
    const __m256 cd = _mm256_hadd_ps(_mm256_add_ps(v[2].a, v[2].b), _mm256_add_ps(v[3].a, v[3].b));
    const __m256 abcd = _mm256_hadd_ps(ab, cd);
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(abcd), _mm256_extractf128_ps(abcd, 1)));
}
QLLM_INLINE Floats floats_from_memory(const void* p, int type, int n) {
    if (type == QLLM_FLOAT32) {
        if (n == 16) return floats_load((const float*)p);
        float floats[16] = {0};
        memcpy(floats, p, 4 * n);
        return floats_load(floats);
    }
    uint16_t space[16] = {0};
    if (n != 16) memcpy(space, p, 2 * n);
    const __m128i* half = (const __m128i*)(n == 16 ? p : space);
    const __m128i first = _mm_loadu_si128(half), second = _mm_loadu_si128(half + 1);
    if (type == QLLM_FLOAT16) return {_mm256_cvtph_ps(first), _mm256_cvtph_ps(second)};
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(first), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(second), 16))};
}
QLLM_INLINE __m256i bfloat16_bits(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF)), 16);
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC0), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}
QLLM_INLINE void floats_to_memory(void* p, int type, int n, Floats v) {
    if (type == QLLM_FLOAT32) {
        float floats[16];
        floats_store(floats, v);
        memcpy(p, floats, 4 * n);
        return;
    }
    uint16_t half[16];
    if (type == QLLM_FLOAT16) {
        _mm_storeu_si128((__m128i*)half, _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        _mm_storeu_si128((__m128i*)half + 1, _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    } else {
        const __m256i both = _mm256_packus_epi32(bfloat16_bits(v.a), bfloat16_bits(v.b));
        _mm256_storeu_si256((__m256i*)half, _mm256_permute4x64_epi64(both, 0xD8));
    }
    memcpy(p, half, 2 * n);
}
QLLM_INLINE Floats floats_column(const float* p) {
    const __m256i steps = _mm256_slli_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), 4);
    return {_mm256_i32gather_ps(p, steps, 4), _mm256_i32gather_ps(p + 128, steps, 4)};
}

// Quarter J of the planes of a field in a whole block of 128 codes (see qllm_hf/layout.py), at bit SHIFT of the code.
template <int J>
QLLM_INLINE Words field8(const uint8_t* p) {
    return {_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(p + 32 * J))),
            _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)(p + 32 * J + 16)))};
}
template <int J>
QLLM_INLINE Words field4(const uint8_t* p) {
    const Words v = load_words(p);  // 32 words, 4 planes
    const __m256i mask = _mm256_set1_epi16(15);
    return {_mm256_and_si256(_mm256_srli_epi16(v.a, 4 * J), mask), _mm256_and_si256(_mm256_srli_epi16(v.b, 4 * J), mask)};
}
template <int J, int SHIFT>
QLLM_INLINE Words field2(const uint8_t* p) {
    const __m256i v = _mm256_loadu_si256((const __m256i*)p), mask = _mm256_set1_epi16(3);  // 16 words, 8 planes
    return {_mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 4 * J), mask), SHIFT),
            _mm256_slli_epi16(_mm256_and_si256(_mm256_srli_epi16(v, 4 * J + 2), mask), SHIFT)};
}
template <int J, int SHIFT>
QLLM_INLINE Words field1(const uint8_t* p) {
    const __m256i v = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));  // 8 words, 16 planes
    // bit s moves to the top by a product with 2^(15 - s): there are no shifts of words by variable counts
    const __m128i plane0 = _mm_set1_epi16((int16_t)(1 << (15 - 4 * J))), plane1 = _mm_srli_epi16(plane0, 1);
    const __m256i first = _mm256_set_m128i(plane1, plane0), second = _mm256_srli_epi16(first, 2);
    return {_mm256_slli_epi16(_mm256_srli_epi16(_mm256_mullo_epi16(v, first), 15), SHIFT),
            _mm256_slli_epi16(_mm256_srli_epi16(_mm256_mullo_epi16(v, second), 15), SHIFT)};
}

}  // namespace QLLM_NAMESPACE
