// Arrays and loops, for processors without AVX2 and for everything that is not x86. Compilers turn most of them into
// whatever vector instructions the target has.
#pragma once

#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "qllm_cpu.h"

namespace QLLM_NAMESPACE {

#define QLLM_INLINE static inline __attribute__((always_inline))
#define QLLM_ACCUMULATORS 6
#define QLLM_UNITS 1
#define QLLM_ROW_TOKENS 2

// Vectors of 64 bytes are an extension of gcc and clang, which cut them into the registers that there are.
typedef int16_t Words __attribute__((vector_size(64), aligned(16), may_alias));
typedef uint16_t UnsignedWords __attribute__((vector_size(64), aligned(16), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(16), may_alias));
typedef uint32_t UnsignedInts __attribute__((vector_size(64), aligned(16), may_alias));
typedef float Floats __attribute__((vector_size(64), aligned(16), may_alias));

QLLM_INLINE Words load_words(const void* p) {
    Words r;
    memcpy(&r, p, sizeof r);
    return r;
}
QLLM_INLINE void store_words(void* p, Words v) { memcpy(p, &v, sizeof v); }
QLLM_INLINE Words words_zero() { return Words{}; }
QLLM_INLINE Words words_from(Ints v) { return (Words)v; }
QLLM_INLINE Words words_or(Words a, Words b) { return a | b; }
QLLM_INLINE Words words_minus(Words a, int16_t b) { return a - b; }
QLLM_INLINE Words words_bits(Words v, int shift, int16_t mask) { return (Words)((UnsignedWords)v >> (uint16_t)shift) & mask; }
QLLM_INLINE Words words_left(Words v, int shift) { return (Words)((UnsignedWords)v << (uint16_t)shift); }
QLLM_INLINE Ints dot_words(Ints acc, Words a, Words b) {
#ifdef __SSE2__
    __m128i sums[4], left[4], right[4];
    memcpy(left, &a, sizeof a);
    memcpy(right, &b, sizeof b);
    for (int i = 0; i < 4; i++) sums[i] = _mm_madd_epi16(left[i], right[i]);
    Ints products;
    memcpy(&products, sums, sizeof products);
    return acc + products;
#else
    const Ints low = ((Ints)((UnsignedInts)a << 16) >> 16) * ((Ints)((UnsignedInts)b << 16) >> 16);  // of little-endian words
    return acc + low + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
}
QLLM_INLINE Ints dot_words(Ints acc, Words a, const int16_t* b) { return dot_words(acc, a, load_words(b)); }
QLLM_INLINE Ints ints_all(int32_t v) { return v - Ints{}; }
QLLM_INLINE Words words_pair(const void* pair) {
    int32_t both;
    memcpy(&both, pair, 4);
    return (Words)ints_all(both);
}

QLLM_INLINE Ints ints_zero() { return Ints{}; }
QLLM_INLINE Ints ints_first(int32_t v) { return Ints{v}; }
QLLM_INLINE Ints ints_load(const void* p) {
    Ints r;
    memcpy(&r, p, sizeof r);
    return r;
}
QLLM_INLINE void ints_store(void* p, Ints v) { memcpy(p, &v, sizeof v); }
QLLM_INLINE Ints ints_plus(Ints a, Ints b) { return (Ints)((UnsignedInts)a + (UnsignedInts)b); }
QLLM_INLINE Ints ints_minus(Ints a, Ints b) { return (Ints)((UnsignedInts)a - (UnsignedInts)b); }
QLLM_INLINE Ints ints_negative_product(Ints a, Ints b) { return (Ints)(-((UnsignedInts)a * (UnsignedInts)b)); }
QLLM_INLINE int32_t ints_sum(Ints v) {
    uint32_t sum = 0;
    for (int i = 0; i < 16; i++) sum += (uint32_t)v[i];
    return (int32_t)sum;
}
QLLM_INLINE Ints ints_from_bytes(const uint8_t* p, int n) {
    Ints r = {};
    for (int i = 0; i < n; i++) r[i] = p[i];
    return r;
}
QLLM_INLINE Ints ints_high_word(Ints v) { return (v + 32768) >> 16; }
QLLM_INLINE Ints ints_times_65536(Ints v) { return (Ints)((UnsignedInts)v << 16); }
QLLM_INLINE Ints ints_low_digit(Ints v) { return (Ints)((UnsignedInts)v << 24) >> 24; }
QLLM_INLINE void ints_to_words(int16_t* p, Ints v) {
    for (int i = 0; i < 16; i++) p[i] = (int16_t)v[i];
}

QLLM_INLINE Floats floats_all(float v) { return v + Floats{}; }
QLLM_INLINE Floats floats_zero() { return Floats{}; }
QLLM_INLINE Floats floats_load(const float* p) {
    Floats r;
    memcpy(&r, p, sizeof r);
    return r;
}
QLLM_INLINE void floats_store(float* p, Floats v) { memcpy(p, &v, sizeof v); }
QLLM_INLINE Floats floats_from(Ints v) { return __builtin_convertvector(v, Floats); }
QLLM_INLINE Floats floats_add(Floats a, Floats b) { return a + b; }
QLLM_INLINE Floats floats_mul(Floats a, Floats b) { return a * b; }
QLLM_INLINE Floats floats_div(Floats a, Floats b) { return a / b; }
// As x86 has them: b where one is not a number.
QLLM_INLINE Floats floats_min(Floats a, Floats b) { return a < b ? a : b; }
QLLM_INLINE Floats floats_max(Floats a, Floats b) { return a > b ? a : b; }
QLLM_INLINE Floats floats_fma(Floats a, Floats b, Floats c) { return c + a * b; }
QLLM_INLINE Floats floats_fnma(Floats a, Floats b, Floats c) { return c - a * b; }
QLLM_INLINE float floats_sum(Floats v) {
    float sums[16];
    floats_store(sums, v);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}
QLLM_INLINE void floats_sum4(const Floats v[4], float* out) {
    for (int i = 0; i < 4; i++) out[i] = floats_sum(v[i]);
}
QLLM_INLINE float floats_least(Floats v) {
    float least = v[0];
    for (int i = 1; i < 16; i++) least = v[i] < least ? v[i] : least;
    return least;
}
QLLM_INLINE float floats_largest(Floats v) {
    float largest = v[0];
    for (int i = 1; i < 16; i++) largest = v[i] > largest ? v[i] : largest;
    return largest;
}
// Round half to even: adding and taking away 1.5 * 2^23 leaves no room for a fraction. Larger numbers have none.
QLLM_INLINE float nearest(float v) {
    const float magnitude = v < 0 ? -v : v;
    if (!(magnitude < 4194304.0f)) return v;
    volatile float large = v + 12582912.0f;
    return large - 12582912.0f;
}
QLLM_INLINE Floats floats_round(Floats v) {
    for (int i = 0; i < 16; i++) v[i] = nearest(v[i]);
    return v;
}
QLLM_INLINE Ints ints_round(Floats v) {
    Ints r;
    for (int i = 0; i < 16; i++) r[i] = (int32_t)nearest(v[i]);
    return r;
}

QLLM_INLINE float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
QLLM_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
QLLM_INLINE float from_float16(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7FFF;
    if (rest >= 0x7C00) return float_of(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    // as if the exponent had the range of float32, then put right by a product, which is exact
    return float_of(sign | bits_of(float_of(rest << 13) * 5192296858534827628530496329220096.0f));  // 2^112
}
QLLM_INLINE uint16_t to_float16(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    if (rest > 0x7F800000) return (uint16_t)(sign | 0x7E00);
    if (rest >= 0x477FF000) return (uint16_t)(sign | 0x7C00);  // rounds beyond 65504
    if (rest < 0x38800000) {                                   // below 2^-14 the steps are 2^-24
        volatile float large = float_of(rest) + 0.5f;           // whose steps are 2^-24 too
        return (uint16_t)(sign | (bits_of(large) - 0x3F000000));
    }
    return (uint16_t)(sign | ((rest - 0x38000000 + 0xFFF + (rest >> 13 & 1)) >> 13));
}
QLLM_INLINE uint16_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FC0;
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
QLLM_INLINE Floats floats_from_memory(const void* p, int type, int n) {
    Floats r = floats_zero();
    if (type == QLLM_FLOAT32) {
        memcpy(&r, p, 4 * n);
        return r;
    }
    uint16_t half[16];
    memcpy(half, p, 2 * n);
    for (int i = 0; i < n; i++) r[i] = type == QLLM_FLOAT16 ? from_float16(half[i]) : float_of((uint32_t)half[i] << 16);
    return r;
}
QLLM_INLINE void floats_to_memory(void* p, int type, int n, Floats v) {
    if (type == QLLM_FLOAT32) {
        memcpy(p, &v, 4 * n);
        return;
    }
    uint16_t half[16];
    for (int i = 0; i < n; i++) half[i] = type == QLLM_FLOAT16 ? to_float16(v[i]) : to_bfloat16(v[i]);
    memcpy(p, half, 2 * n);
}
QLLM_INLINE Floats floats_column(const float* p) {
    Floats r;
    for (int i = 0; i < 16; i++) r[i] = p[16 * i];
    return r;
}

// Quarter J of the planes of a field in a whole block of 128 codes (see qllm_hf/layout.py), at bit SHIFT of the code.
template <int J>
QLLM_INLINE Words field8(const uint8_t* p) {
    typedef uint8_t Bytes __attribute__((vector_size(32), aligned(1)));
    Bytes bytes;
    memcpy(&bytes, p + 32 * J, sizeof bytes);
    return __builtin_convertvector(bytes, Words);
}
// Planes 32 / COUNT * J and those after it, of COUNT words each.
template <int WIDTH, int COUNT, int SHIFT, int J>
QLLM_INLINE Words planes(const uint8_t* p) {
    typedef uint16_t Plane __attribute__((vector_size(2 * COUNT), aligned(2)));
    Plane words, parts[32 / COUNT];
    memcpy(&words, p, sizeof words);
    for (int i = 0; i < 32 / COUNT; i++) parts[i] = (words >> (uint16_t)(WIDTH * (32 / COUNT * J + i)) & (uint16_t)((1 << WIDTH) - 1)) << SHIFT;
    return load_words(parts);
}
template <int J>
QLLM_INLINE Words field4(const uint8_t* p) {
    return planes<4, 32, 0, J>(p);
}
template <int J, int SHIFT>
QLLM_INLINE Words field2(const uint8_t* p) {
    return planes<2, 16, SHIFT, J>(p);
}
template <int J, int SHIFT>
QLLM_INLINE Words field1(const uint8_t* p) {
    return planes<1, 8, SHIFT, J>(p);
}

}  // namespace QLLM_NAMESPACE
