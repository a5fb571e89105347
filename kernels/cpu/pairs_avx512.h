// 512-bit registers: a pair is two registers.
#pragma once

namespace QLLM_NAMESPACE {

#define QLLM_HAS_FMA 1    // one rounding: a quotient can be had exactly from a product with the inverse
#define QLLM_HAS_TABLE 1  // 32 words looked up in a register

template <int TYPE>
QLLM_INLINE void pair_load(const void* p, Floats* a, Floats* b) {
    if constexpr (TYPE == QLLM_BFLOAT16) {
        const __m512i v = _mm512_loadu_si512(p);
        *a = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
        *b = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32((int)0xFFFF0000)));
    } else if constexpr (TYPE == QLLM_FLOAT16) {
        *a = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
        *b = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p + 1));
    } else {
        *a = _mm512_loadu_ps(p);
        *b = _mm512_loadu_ps((const float*)p + 16);
    }
}
template <int TYPE>
QLLM_INLINE Words pair_words(Ints a, Ints b) {
    if constexpr (TYPE == QLLM_BFLOAT16) return _mm512_mask_blend_epi16(0xAAAAAAAA, a, _mm512_slli_epi32(b, 16));
    const __m512i lanes = _mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0);
    return _mm512_permutexvar_epi64(lanes, _mm512_packs_epi32(a, b));
}
// The low words of a pair of bfloat16's floats.
template <int TYPE>
QLLM_INLINE Words pair_low_words(Floats a, Floats b) {
    return pair_words<TYPE>(_mm512_castps_si512(a), _mm512_castps_si512(b));
}
template <int TYPE>
QLLM_INLINE void pair_codes(Words w, Floats* a, Floats* b) {
    if constexpr (TYPE == QLLM_BFLOAT16) {
        *a = _mm512_cvtepi32_ps(_mm512_and_si512(w, _mm512_set1_epi32(0xFFFF)));
        *b = _mm512_cvtepi32_ps(_mm512_srli_epi32(w, 16));
    } else {
        *a = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(w)));
        *b = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(w, 1)));
    }
}
// The bits of a bfloat16 in the high half of each lane, something in the low half.
QLLM_INLINE __m512i bfloat16_high(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7FFF));
    return _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC00000));
}
// Numbers of 16 bits, in their natural order.
template <int TYPE>
QLLM_INLINE Words pair_pack(Floats a, Floats b) {
    if constexpr (TYPE == QLLM_BFLOAT16)
        return _mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(bfloat16_high(a), 16), bfloat16_high(b));
    const __m256i first = _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), _mm512_cvtps_ph(b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), 1);
}
template <int TYPE>
QLLM_INLINE void pair_store(void* p, Floats a, Floats b) {
    if constexpr (TYPE == QLLM_FLOAT32) {
        _mm512_storeu_ps(p, a);
        _mm512_storeu_ps((float*)p + 16, b);
    } else {
        _mm512_storeu_si512(p, (pair_pack<TYPE>(a, b)));
    }
}
// table[index], of 32 words and for indices below 32.
QLLM_INLINE Words words_look_up(Words index, Words table) { return _mm512_permutexvar_epi16(index, table); }

QLLM_INLINE Words words_plus(Words a, Words b) { return _mm512_add_epi16(a, b); }
QLLM_INLINE Words words_plus_saturating(Words a, Words b) { return _mm512_adds_epi16(a, b); }
QLLM_INLINE Words words_minus_unsigned(Words a, Words b) { return _mm512_subs_epu16(a, b); }
QLLM_INLINE Words words_most(Words a, Words b) { return _mm512_max_epi16(a, b); }
QLLM_INLINE Words words_most_unsigned(Words a, Words b) { return _mm512_max_epu16(a, b); }
QLLM_INLINE Ints ints_most(Ints a, Ints b) { return _mm512_max_epi32(a, b); }
QLLM_INLINE Ints ints_most_unsigned(Ints a, Ints b) { return _mm512_max_epu32(a, b); }
QLLM_INLINE uint16_t words_largest(Words v) {
    const __m256i half = _mm256_max_epu16(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1));
    const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return (uint16_t)~_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi32(-1))));
}
QLLM_INLINE uint32_t ints_largest(Ints v) { return _mm512_reduce_max_epu32(v); }
// The first n <= 32 words, or n <= 16 integers, 0 after them.
QLLM_INLINE Words words_first(const void* p, int n) { return _mm512_maskz_loadu_epi16(n == 32 ? 0xFFFFFFFF : (1u << n) - 1, p); }
QLLM_INLINE Ints ints_first_of(const void* p, int n) { return _mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p); }

template <int N>
QLLM_INLINE Words words_left_by(Words v) {
    return _mm512_slli_epi16(v, N);
}
template <int N>
QLLM_INLINE Words words_right_by(Words v) {
    return _mm512_srli_epi16(v, N);
}
QLLM_INLINE Words words_and(Words v, int16_t mask) { return _mm512_and_si512(v, _mm512_set1_epi16(mask)); }

// Past the caches, to an address that 64 divides.
QLLM_INLINE void stream_line(void* p, Words v) { _mm512_stream_si512((__m512i*)p, v); }
QLLM_INLINE void stream_end() { _mm_sfence(); }

QLLM_INLINE void store_bytes(uint8_t* p, Words v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi16_epi8(v)); }
QLLM_INLINE void store_fold2(uint8_t* p, Words v) {
    const __m256i high = _mm256_slli_epi16(_mm512_extracti64x4_epi64(v, 1), 2);
    _mm256_storeu_si256((__m256i*)p, _mm256_or_si256(_mm512_castsi512_si256(v), high));
}
QLLM_INLINE void store_fold1(uint8_t* p, Words v) {
    const __m256i two = _mm256_or_si256(_mm512_castsi512_si256(v), _mm256_slli_epi16(_mm512_extracti64x4_epi64(v, 1), 2));
    const __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(two, 1), 1);
    _mm_storeu_si128((__m128i*)p, _mm_or_si128(_mm256_castsi256_si128(two), high));
}

}  // namespace QLLM_NAMESPACE
