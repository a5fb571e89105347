// 256-bit registers: a pair is four registers.
#pragma once

namespace QLLM_NAMESPACE {

#define QLLM_HAS_FMA 1

QLLM_INLINE __m256i natural_order(__m256i packed) { return _mm256_permute4x64_epi64(packed, 0xD8); }

template <int TYPE>
QLLM_INLINE void pair_load(const void* p, Floats* a, Floats* b) {
    if constexpr (TYPE == QLLM_BFLOAT16) {
        const Words v = load_words(p);
        const __m256i high = _mm256_set1_epi32((int)0xFFFF0000);
        *a = {_mm256_castsi256_ps(_mm256_slli_epi32(v.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(v.b, 16))};
        *b = {_mm256_castsi256_ps(_mm256_and_si256(v.a, high)), _mm256_castsi256_ps(_mm256_and_si256(v.b, high))};
    } else if constexpr (TYPE == QLLM_FLOAT16) {
        const __m128i* half = (const __m128i*)p;
        *a = {_mm256_cvtph_ps(_mm_loadu_si128(half)), _mm256_cvtph_ps(_mm_loadu_si128(half + 1))};
        *b = {_mm256_cvtph_ps(_mm_loadu_si128(half + 2)), _mm256_cvtph_ps(_mm_loadu_si128(half + 3))};
    } else {
        *a = floats_load((const float*)p);
        *b = floats_load((const float*)p + 16);
    }
}
template <int TYPE>
QLLM_INLINE Words pair_words(Ints a, Ints b) {
    if constexpr (TYPE == QLLM_BFLOAT16)
        return {_mm256_blend_epi16(a.a, _mm256_slli_epi32(b.a, 16), 0xAA), _mm256_blend_epi16(a.b, _mm256_slli_epi32(b.b, 16), 0xAA)};
    return {natural_order(_mm256_packs_epi32(a.a, a.b)), natural_order(_mm256_packs_epi32(b.a, b.b))};
}
// The low words of a pair of bfloat16's floats.
template <int TYPE>
QLLM_INLINE Words pair_low_words(Floats a, Floats b) {
    return pair_words<TYPE>(Ints{_mm256_castps_si256(a.a), _mm256_castps_si256(a.b)}, Ints{_mm256_castps_si256(b.a), _mm256_castps_si256(b.b)});
}
template <int TYPE>
QLLM_INLINE void pair_codes(Words w, Floats* a, Floats* b) {
    if constexpr (TYPE == QLLM_BFLOAT16) {
        const __m256i low = _mm256_set1_epi32(0xFFFF);
        *a = {_mm256_cvtepi32_ps(_mm256_and_si256(w.a, low)), _mm256_cvtepi32_ps(_mm256_and_si256(w.b, low))};
        *b = {_mm256_cvtepi32_ps(_mm256_srli_epi32(w.a, 16)), _mm256_cvtepi32_ps(_mm256_srli_epi32(w.b, 16))};
    } else {
        *a = {_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(w.a))),
              _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(w.a, 1)))};
        *b = {_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(w.b))),
              _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(w.b, 1)))};
    }
}
QLLM_INLINE __m256i bfloat16_high(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v), odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7FFF));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7FC00000), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
}
QLLM_INLINE __m256i bfloat16_pair(__m256 even, __m256 odd) {
    return _mm256_blend_epi16(_mm256_srli_epi32(bfloat16_high(even), 16), bfloat16_high(odd), 0xAA);
}
template <int TYPE>
QLLM_INLINE void pair_store(void* p, Floats a, Floats b) {
    if constexpr (TYPE == QLLM_BFLOAT16) {
        store_words(p, {bfloat16_pair(a.a, b.a), bfloat16_pair(a.b, b.b)});
    } else if constexpr (TYPE == QLLM_FLOAT16) {
        enum { NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
        __m128i* half = (__m128i*)p;
        _mm_storeu_si128(half, _mm256_cvtps_ph(a.a, NEAREST));
        _mm_storeu_si128(half + 1, _mm256_cvtps_ph(a.b, NEAREST));
        _mm_storeu_si128(half + 2, _mm256_cvtps_ph(b.a, NEAREST));
        _mm_storeu_si128(half + 3, _mm256_cvtps_ph(b.b, NEAREST));
    } else {
        floats_store((float*)p, a);
        floats_store((float*)p + 16, b);
    }
}

QLLM_INLINE Words words_plus(Words a, Words b) { return {_mm256_add_epi16(a.a, b.a), _mm256_add_epi16(a.b, b.b)}; }
QLLM_INLINE Words words_plus_saturating(Words a, Words b) { return {_mm256_adds_epi16(a.a, b.a), _mm256_adds_epi16(a.b, b.b)}; }
QLLM_INLINE Words words_minus_unsigned(Words a, Words b) { return {_mm256_subs_epu16(a.a, b.a), _mm256_subs_epu16(a.b, b.b)}; }
QLLM_INLINE Words words_most(Words a, Words b) { return {_mm256_max_epi16(a.a, b.a), _mm256_max_epi16(a.b, b.b)}; }
QLLM_INLINE Words words_most_unsigned(Words a, Words b) { return {_mm256_max_epu16(a.a, b.a), _mm256_max_epu16(a.b, b.b)}; }
QLLM_INLINE Ints ints_most(Ints a, Ints b) { return {_mm256_max_epi32(a.a, b.a), _mm256_max_epi32(a.b, b.b)}; }
QLLM_INLINE Ints ints_most_unsigned(Ints a, Ints b) { return {_mm256_max_epu32(a.a, b.a), _mm256_max_epu32(a.b, b.b)}; }
QLLM_INLINE uint16_t words_largest(Words v) {
    const __m256i half = _mm256_max_epu16(v.a, v.b);
    const __m128i eight = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    return (uint16_t)~_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi32(-1))));
}
QLLM_INLINE uint32_t ints_largest(Ints v) {
    const __m256i half = _mm256_max_epu32(v.a, v.b);
    __m128i four = _mm_max_epu32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    four = _mm_max_epu32(four, _mm_shuffle_epi32(four, 0x4E));
    return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(four, _mm_shuffle_epi32(four, 0xB1)));
}
QLLM_INLINE Words words_first(const void* p, int n) {
    int16_t words[32] = {0};
    memcpy(words, p, 2 * n);
    return load_words(words);
}
QLLM_INLINE Ints ints_first_of(const void* p, int n) {
    int32_t ints[16] = {0};
    memcpy(ints, p, 4 * n);
    return ints_load(ints);
}

template <int N>
QLLM_INLINE Words words_left_by(Words v) {
    return {_mm256_slli_epi16(v.a, N), _mm256_slli_epi16(v.b, N)};
}
template <int N>
QLLM_INLINE Words words_right_by(Words v) {
    return {_mm256_srli_epi16(v.a, N), _mm256_srli_epi16(v.b, N)};
}
QLLM_INLINE Words words_and(Words v, int16_t mask) {
    const __m256i all = _mm256_set1_epi16(mask);
    return {_mm256_and_si256(v.a, all), _mm256_and_si256(v.b, all)};
}

QLLM_INLINE void stream_line(void* p, Words v) {
    _mm256_stream_si256((__m256i*)p, v.a);
    _mm256_stream_si256((__m256i*)p + 1, v.b);
}
QLLM_INLINE void stream_end() { _mm_sfence(); }

QLLM_INLINE void store_bytes(uint8_t* p, Words v) {
    _mm256_storeu_si256((__m256i*)p, natural_order(_mm256_packus_epi16(v.a, v.b)));
}
QLLM_INLINE void store_fold2(uint8_t* p, Words v) {
    _mm256_storeu_si256((__m256i*)p, _mm256_or_si256(v.a, _mm256_slli_epi16(v.b, 2)));
}
QLLM_INLINE void store_fold1(uint8_t* p, Words v) {
    const __m256i two = _mm256_or_si256(v.a, _mm256_slli_epi16(v.b, 2));
    const __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(two, 1), 1);
    _mm_storeu_si128((__m128i*)p, _mm_or_si128(_mm256_castsi256_si128(two), high));
}

}  // namespace QLLM_NAMESPACE
