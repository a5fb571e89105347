// What attention needs besides vectors.h, once for each instruction set.
//
//   Codes  64 codes of 8 bits: 16 lanes of four, ready for products
//   Quads  four numbers of 16 bits for all lanes: as a high and a low byte where the processor multiplies bytes
#pragma once

#include "vectors.h"

namespace QLLM_NAMESPACE {

// The largest number of 16 bits whose high byte, rounded, is still one.
#define QLLM_LARGEST 32512.0f

#if defined(QLLM_LEVEL_AVX512_VNNI) || defined(QLLM_LEVEL_AMX)

#define QLLM_ATTENTION_ROWS 4  // queries of a tile

QLLM_INLINE Ints ints_mask(Ints v, int32_t mask) { return _mm512_and_si512(v, _mm512_set1_epi32(mask)); }
QLLM_INLINE Ints ints_either(Ints a, Ints b) { return _mm512_or_si512(a, b); }
template <int N>
QLLM_INLINE Ints ints_right(Ints v) {
    return _mm512_srli_epi32(v, N);
}
template <int N>
QLLM_INLINE Ints ints_left(Ints v) {
    return _mm512_slli_epi32(v, N);
}
// The floats that have these bits, and v 2^n for n >= -126.
QLLM_INLINE Floats floats_of_bits(Ints v) { return _mm512_castsi512_ps(v); }
QLLM_INLINE Floats floats_times_power(Floats v, Ints n) {
    return _mm512_mul_ps(v, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(127)), 23)));
}
// Four bytes at the start of 16 rows, `stride` bytes apart.
QLLM_INLINE Ints ints_of_rows(const uint8_t* p, int64_t stride) {
    const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_i32gather_epi32(_mm512_mullo_epi32(steps, _mm512_set1_epi32((int)stride)), p, 1);
}

// PLANES planes of WIDTH bits at p, each BYTES long: the planes first, first + 1, ... one after another, as 64 bytes
// with the field at bit SHIFT of each.
template <int BYTES, int WIDTH, int SHIFT, int FIRST>
QLLM_INLINE Ints bytes_of_planes(const uint8_t* p) {
    __m512i v;
    if constexpr (BYTES == 64) v = _mm512_loadu_si512(p);
    if constexpr (BYTES == 32) v = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)p));
    if constexpr (BYTES == 16) v = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)p));
    if constexpr (BYTES == 8) {
        int64_t eight;
        memcpy(&eight, p, 8);
        v = _mm512_set1_epi64(eight);
    }
#define TURN(i) (((FIRST + i * 4 / BYTES) * WIDTH - SHIFT) & 31)
    v = _mm512_rorv_epi32(v, _mm512_set_epi32(TURN(15), TURN(14), TURN(13), TURN(12), TURN(11), TURN(10), TURN(9), TURN(8), TURN(7), TURN(6),
                                              TURN(5), TURN(4), TURN(3), TURN(2), TURN(1), TURN(0)));
#undef TURN
    return _mm512_and_si512(v, _mm512_set1_epi8((char)(((1 << WIDTH) - 1) << SHIFT)));
}

// 16 rows of 16 bytes, turned: lane t of out[j] holds the bytes 4j .. 4j + 3 of row t.
QLLM_INLINE void columns_of_rows(const uint8_t* p, int64_t stride, Ints out[4]) {
#define ROW(i) _mm_loadu_si128((const __m128i*)(p + (i) * stride))
#define FOUR(i) \
    _mm512_inserti32x4(_mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(ROW(i)), ROW(4 + i), 1), ROW(8 + i), 2), ROW(12 + i), 3)
    const __m512i a = FOUR(0), b = FOUR(1), c = FOUR(2), d = FOUR(3);
#undef FOUR
#undef ROW
    const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
    out[0] = _mm512_unpacklo_epi64(ab0, cd0);
    out[1] = _mm512_unpackhi_epi64(ab0, cd0);
    out[2] = _mm512_unpacklo_epi64(ab1, cd1);
    out[3] = _mm512_unpackhi_epi64(ab1, cd1);
}
// The field of plane K of words, at bit SHIFT of each byte.
template <int WIDTH, int SHIFT, int K>
QLLM_INLINE Ints plane_of(Ints v) {
    return _mm512_and_si512(_mm512_ror_epi32(v, (K * WIDTH - SHIFT) & 31), _mm512_set1_epi8((char)(((1 << WIDTH) - 1) << SHIFT)));
}
// 64 bytes of four rows, interleaved: lane 4L + x of vector j, stored at out + j step, holds bytes 16L + 4j + x of each.
QLLM_INLINE void interleave_rows(Ints a, Ints b, Ints c, Ints d, uint8_t* out, int64_t step) {
    const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi16(ab0, cd0));
    _mm512_storeu_si512(out + step, _mm512_unpackhi_epi16(ab0, cd0));
    _mm512_storeu_si512(out + 2 * step, _mm512_unpacklo_epi16(ab1, cd1));
    _mm512_storeu_si512(out + 3 * step, _mm512_unpackhi_epi16(ab1, cd1));
}

typedef __m512i Codes;
struct Quads {
    __m512i high, low;
};
QLLM_INLINE Codes load_codes(const uint8_t* p) { return _mm512_loadu_si512(p); }
QLLM_INLINE void store_numbers(uint8_t* p, int64_t plane, Ints v) {
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(v, _mm512_set1_epi32(128)), 8);
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128((__m128i*)(p + plane), _mm512_cvtepi32_epi8(v));
}
QLLM_INLINE Quads load_quads(const uint8_t* p, int64_t plane) {
    int32_t high, low;
    memcpy(&high, p, 4), memcpy(&low, p + plane, 4);
    return {_mm512_set1_epi32(high), _mm512_set1_epi32(low)};
}
QLLM_INLINE void add_products(Ints& x, Ints& y, Codes codes, Quads q) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(x) : "v"(codes), "v"(q.high));
    __asm__("vpdpbusd %2, %1, %0" : "+v"(y) : "v"(codes), "v"(q.low));
}
QLLM_INLINE Ints joined(Ints x, Ints y) { return _mm512_add_epi32(_mm512_slli_epi32(x, 8), y); }

#elif defined(QLLM_LEVEL_AVX2) || defined(QLLM_LEVEL_AVX2_VNNI)

#define QLLM_ATTENTION_ROWS 2

QLLM_INLINE Ints ints_mask(Ints v, int32_t mask) {
    const __m256i all = _mm256_set1_epi32(mask);
    return {_mm256_and_si256(v.a, all), _mm256_and_si256(v.b, all)};
}
QLLM_INLINE Ints ints_either(Ints a, Ints b) { return {_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)}; }
template <int N>
QLLM_INLINE Ints ints_right(Ints v) {
    return {_mm256_srli_epi32(v.a, N), _mm256_srli_epi32(v.b, N)};
}
template <int N>
QLLM_INLINE Ints ints_left(Ints v) {
    return {_mm256_slli_epi32(v.a, N), _mm256_slli_epi32(v.b, N)};
}
QLLM_INLINE Floats floats_of_bits(Ints v) { return {_mm256_castsi256_ps(v.a), _mm256_castsi256_ps(v.b)}; }
QLLM_INLINE Floats floats_times_power(Floats v, Ints n) {
    const __m256i bias = _mm256_set1_epi32(127);
    return {_mm256_mul_ps(v.a, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.a, bias), 23))),
            _mm256_mul_ps(v.b, _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n.b, bias), 23)))};
}
QLLM_INLINE Ints ints_of_rows(const uint8_t* p, int64_t stride) {
    int32_t v[16];
    for (int i = 0; i < 16; i++) memcpy(v + i, p + i * stride, 4);
    return {_mm256_loadu_si256((const __m256i*)v), _mm256_loadu_si256((const __m256i*)(v + 8))};
}
template <int BYTES, int WIDTH, int SHIFT, int FIRST>
QLLM_INLINE Ints bytes_of_planes(const uint8_t* p) {
    __m256i a, b;
    if constexpr (BYTES == 64) a = _mm256_loadu_si256((const __m256i*)p), b = _mm256_loadu_si256((const __m256i*)(p + 32));
    if constexpr (BYTES == 32) a = b = _mm256_loadu_si256((const __m256i*)p);
    if constexpr (BYTES == 16) a = b = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)p));
    if constexpr (BYTES == 8) {
        int64_t eight;
        memcpy(&eight, p, 8);
        a = b = _mm256_set1_epi64x(eight);
    }
#define TURN(i) ((FIRST + (i) * 4 / BYTES) * WIDTH)
#define TURNS(i) _mm256_set_epi32(TURN(i + 7), TURN(i + 6), TURN(i + 5), TURN(i + 4), TURN(i + 3), TURN(i + 2), TURN(i + 1), TURN(i))
    const __m256i mask = _mm256_set1_epi8((char)((1 << WIDTH) - 1));
    a = _mm256_slli_epi32(_mm256_and_si256(_mm256_srlv_epi32(a, TURNS(0)), mask), SHIFT);
    b = _mm256_slli_epi32(_mm256_and_si256(_mm256_srlv_epi32(b, TURNS(8)), mask), SHIFT);
#undef TURNS
#undef TURN
    return {a, b};
}
QLLM_INLINE void columns_of_rows(const uint8_t* p, int64_t stride, Ints out[4]) {
#define ROW(i) _mm_loadu_si128((const __m128i*)(p + (i) * stride))
#define TWO(i, half) _mm256_inserti128_si256(_mm256_castsi128_si256(ROW(8 * half + i)), ROW(8 * half + 4 + i), 1)
#define HALF(part, half)                                                                    \
    {                                                                                       \
        const __m256i a = TWO(0, half), b = TWO(1, half), c = TWO(2, half), d = TWO(3, half); \
        const __m256i ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b); \
        const __m256i cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d); \
        out[0].part = _mm256_unpacklo_epi64(ab0, cd0);                                      \
        out[1].part = _mm256_unpackhi_epi64(ab0, cd0);                                      \
        out[2].part = _mm256_unpacklo_epi64(ab1, cd1);                                      \
        out[3].part = _mm256_unpackhi_epi64(ab1, cd1);                                      \
    }
    HALF(a, 0) HALF(b, 1)
#undef HALF
#undef TWO
#undef ROW
}
template <int WIDTH, int SHIFT, int K>
QLLM_INLINE Ints plane_of(Ints v) {
    const Ints moved = ints_mask(ints_right<K * WIDTH>(v), ((1 << WIDTH) - 1) * 0x01010101);
    return SHIFT ? ints_left<SHIFT>(moved) : moved;
}
QLLM_INLINE void interleave_halves(__m256i a, __m256i b, __m256i c, __m256i d, uint8_t* out, int64_t step) {
    const __m256i ab0 = _mm256_unpacklo_epi8(a, b), ab1 = _mm256_unpackhi_epi8(a, b);
    const __m256i cd0 = _mm256_unpacklo_epi8(c, d), cd1 = _mm256_unpackhi_epi8(c, d);
    _mm256_storeu_si256((__m256i*)out, _mm256_unpacklo_epi16(ab0, cd0));
    _mm256_storeu_si256((__m256i*)(out + step), _mm256_unpackhi_epi16(ab0, cd0));
    _mm256_storeu_si256((__m256i*)(out + 2 * step), _mm256_unpacklo_epi16(ab1, cd1));
    _mm256_storeu_si256((__m256i*)(out + 3 * step), _mm256_unpackhi_epi16(ab1, cd1));
}
QLLM_INLINE void interleave_rows(Ints a, Ints b, Ints c, Ints d, uint8_t* out, int64_t step) {
    interleave_halves(a.a, b.a, c.a, d.a, out, step);
    interleave_halves(a.b, b.b, c.b, d.b, out + 32, step);
}

struct Quads {
    __m256i first, second;
};
#ifdef QLLM_LEVEL_AVX2_VNNI
typedef Ints Codes;
QLLM_INLINE Codes load_codes(const uint8_t* p) { return ints_load(p); }
QLLM_INLINE void store_numbers(uint8_t* p, int64_t plane, Ints v) {
    int32_t numbers[16];
    ints_store(numbers, v);
    for (int i = 0; i < 16; i++) {
        p[i] = (uint8_t)((numbers[i] + 128) >> 8);
        p[plane + i] = (uint8_t)numbers[i];
    }
}
QLLM_INLINE Quads load_quads(const uint8_t* p, int64_t plane) {
    int32_t high, low;
    memcpy(&high, p, 4), memcpy(&low, p + plane, 4);
    return {_mm256_set1_epi32(high), _mm256_set1_epi32(low)};
}
QLLM_INLINE void add_products(Ints& x, Ints& y, const Codes& codes, Quads q) {
    x = {_mm256_dpbusd_avx_epi32(x.a, codes.a, q.first), _mm256_dpbusd_avx_epi32(x.b, codes.b, q.first)};
    y = {_mm256_dpbusd_avx_epi32(y.a, codes.a, q.second), _mm256_dpbusd_avx_epi32(y.b, codes.b, q.second)};
}
QLLM_INLINE Ints joined(Ints x, Ints y) {
    return {_mm256_add_epi32(_mm256_slli_epi32(x.a, 8), y.a), _mm256_add_epi32(_mm256_slli_epi32(x.b, 8), y.b)};
}
#else
// Products of bytes would overflow 16 bits here: the first and the second two codes of each lane as words.
struct Codes {
    Ints first, second;
};
QLLM_INLINE Codes load_codes(const uint8_t* p) {
    const __m256i first = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12,
                                           -1, 13, -1);
    const __m256i second = _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1,
                                            14, -1, 15, -1);
    const __m256i a = _mm256_loadu_si256((const __m256i*)p), b = _mm256_loadu_si256((const __m256i*)(p + 32));
    return {{_mm256_shuffle_epi8(a, first), _mm256_shuffle_epi8(b, first)}, {_mm256_shuffle_epi8(a, second), _mm256_shuffle_epi8(b, second)}};
}
// As words, so that `plane` means nothing: number i is at byte 2i.
QLLM_INLINE void store_numbers(uint8_t* p, int64_t, Ints v) { ints_to_words((int16_t*)p, v); }
QLLM_INLINE Quads load_quads(const uint8_t* p, int64_t) {
    int32_t first, second;
    memcpy(&first, p, 4), memcpy(&second, p + 4, 4);
    return {_mm256_set1_epi32(first), _mm256_set1_epi32(second)};
}
QLLM_INLINE void add_products(Ints& x, Ints& y, const Codes& codes, Quads q) {
    x = {_mm256_add_epi32(x.a, _mm256_madd_epi16(codes.first.a, q.first)), _mm256_add_epi32(x.b, _mm256_madd_epi16(codes.first.b, q.first))};
    y = {_mm256_add_epi32(y.a, _mm256_madd_epi16(codes.second.a, q.second)), _mm256_add_epi32(y.b, _mm256_madd_epi16(codes.second.b, q.second))};
}
QLLM_INLINE Ints joined(Ints x, Ints y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
#define QLLM_NUMBERS_ARE_WORDS 1
#endif

#else  // portable

#define QLLM_ATTENTION_ROWS 2
#define QLLM_NUMBERS_ARE_WORDS 1

QLLM_INLINE Ints ints_mask(Ints v, int32_t mask) { return v & mask; }
QLLM_INLINE Ints ints_either(Ints a, Ints b) { return a | b; }
template <int N>
QLLM_INLINE Ints ints_right(Ints v) {
    return (Ints)((UnsignedInts)v >> N);
}
template <int N>
QLLM_INLINE Ints ints_left(Ints v) {
    return (Ints)((UnsignedInts)v << N);
}
QLLM_INLINE Floats floats_of_bits(Ints v) { return (Floats)v; }
QLLM_INLINE Floats floats_times_power(Floats v, Ints n) { return v * (Floats)((n + 127) << 23); }
QLLM_INLINE Ints ints_of_rows(const uint8_t* p, int64_t stride) {
    int32_t r[16];
    for (int i = 0; i < 16; i++) memcpy(r + i, p + i * stride, 4);
    return ints_load(r);
}
template <int BYTES, int WIDTH, int SHIFT, int FIRST>
QLLM_INLINE Ints bytes_of_planes(const uint8_t* p) {
    uint8_t bytes[64];
    for (int i = 0; i < 64; i++) bytes[i] = (uint8_t)((p[i % BYTES] >> ((FIRST + i / BYTES) * WIDTH) & ((1 << WIDTH) - 1)) << SHIFT);
    return ints_load(bytes);
}
QLLM_INLINE void columns_of_rows(const uint8_t* p, int64_t stride, Ints out[4]) {
    uint8_t turned[4][64];
    for (int row = 0; row < 16; row++)
        for (int i = 0; i < 4; i++) memcpy(turned[i] + 4 * row, p + row * stride + 4 * i, 4);
    for (int i = 0; i < 4; i++) out[i] = ints_load(turned[i]);
}
template <int WIDTH, int SHIFT, int K>
QLLM_INLINE Ints plane_of(Ints v) {
    return ints_left<SHIFT>(ints_mask(ints_right<K * WIDTH>(v), ((1 << WIDTH) - 1) * 0x01010101));
}
QLLM_INLINE void interleave_rows(Ints a, Ints b, Ints c, Ints d, uint8_t* out, int64_t step) {
    uint8_t rows[4][64];
    ints_store(rows[0], a), ints_store(rows[1], b), ints_store(rows[2], c), ints_store(rows[3], d);
    for (int i = 0; i < 64; i++)
        for (int row = 0; row < 4; row++) out[i / 4 % 4 * step + 4 * (i / 16 * 4 + i % 4) + row] = rows[row][i];
}

// The first and the second two codes of each lane as words.
struct Codes {
    Words first, second;
};
struct Quads {
    Words first, second;
};
QLLM_INLINE Codes load_codes(const uint8_t* p) {
    int16_t first[32], second[32];
    for (int i = 0; i < 32; i++) {
        first[i] = p[i / 2 * 4 + i % 2];
        second[i] = p[i / 2 * 4 + i % 2 + 2];
    }
    return {load_words(first), load_words(second)};
}
QLLM_INLINE void store_numbers(uint8_t* p, int64_t, Ints v) { ints_to_words((int16_t*)p, v); }
QLLM_INLINE Quads load_quads(const uint8_t* p, int64_t) { return {words_pair(p), words_pair(p + 4)}; }
QLLM_INLINE void add_products(Ints& x, Ints& y, const Codes& codes, const Quads& q) {
    x = dot_words(x, codes.first, q.first);
    y = dot_words(y, codes.second, q.second);
}
QLLM_INLINE Ints joined(Ints x, Ints y) { return x + y; }
#endif

#ifdef QLLM_NUMBERS_ARE_WORDS
enum { NUMBER_BYTES = 2 };  // from one number to the next, and no second plane
#else
enum { NUMBER_BYTES = 1 };
#endif

// 2^x for x <= 0, and 0 from 2^-126 on; a NaN stays one. The error is below 2^-22.
QLLM_INLINE Floats floats_exp2(Floats x) {
    x = floats_max(floats_all(-126.0f), x);
    const Floats n = floats_round(x), r = floats_fnma(n, floats_all(1.0f), x);
    Floats p = floats_all(1.5353362e-4f);
    p = floats_fma(p, r, floats_all(1.3398874e-3f));
    p = floats_fma(p, r, floats_all(9.6184370e-3f));
    p = floats_fma(p, r, floats_all(5.5503324e-2f));
    p = floats_fma(p, r, floats_all(2.4022648e-1f));
    p = floats_fma(p, r, floats_all(6.9314720e-1f));
    p = floats_fma(p, r, floats_all(1.0f));
    return floats_times_power(p, ints_round(n));
}

}  // namespace QLLM_NAMESPACE
