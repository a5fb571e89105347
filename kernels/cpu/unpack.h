// Words of packed codes -> the codes of a block of 128, in their order, as four Words. The layout is drawn in
// qllm_hf/layout.py; its planes are made so that a quarter of a block is a shift and a mask.
#pragma once

#include "vectors.h"

namespace QLLM_NAMESPACE {

enum { BLOCK = 128, QUARTER = 32, QUARTERS = BLOCK / QUARTER };

template <int BITS>
constexpr int block_bytes() {
    return BLOCK * BITS / 8;
}

// Each bit-width is a sum of fields of 8, 4, 2 and 1 bits, the widest first; a field of a whole block takes 16 bytes a bit.
template <int BITS, int J>
QLLM_INLINE Words quarter(const uint8_t* p) {
    if constexpr (BITS == 8) return field8<J>(p);
    if constexpr (BITS == 7) return words_or(words_or(field4<J>(p), field2<J, 4>(p + 64)), field1<J, 6>(p + 96));
    if constexpr (BITS == 6) return words_or(field4<J>(p), field2<J, 4>(p + 64));
    if constexpr (BITS == 5) return words_or(field4<J>(p), field1<J, 4>(p + 64));
    if constexpr (BITS == 4) return field4<J>(p);
    if constexpr (BITS == 3) return words_or(field2<J, 0>(p), field1<J, 2>(p + 32));
    if constexpr (BITS == 2) return field2<J, 0>(p);
}

template <int BITS>
QLLM_INLINE void unpack_block(const uint8_t* p, Words codes[QUARTERS]) {
    codes[0] = quarter<BITS, 0>(p);
    codes[1] = quarter<BITS, 1>(p);
    codes[2] = quarter<BITS, 2>(p);
    codes[3] = quarter<BITS, 3>(p);
}

#ifdef QLLM_HAS_HALVES
// Half H of a block as 64 bytes, in the order of `place_in_halves`; 8 bits are in their own order.
template <int BITS, int H>
QLLM_INLINE Ints half(const uint8_t* p) {
    if constexpr (BITS == 8) return ints_load(p + 64 * H);
    if constexpr (BITS == 7) return words_or(words_or(half4<H>(p), half2<H, 4>(p + 64)), half1<H, 6>(p + 96));
    if constexpr (BITS == 6) return words_or(half4<H>(p), half2<H, 4>(p + 64));
    if constexpr (BITS == 5) return words_or(half4<H>(p), half1<H, 4>(p + 64));
    if constexpr (BITS == 4) return half4<H>(p);
    if constexpr (BITS == 3) return words_or(half2<H, 0>(p), half1<H, 2>(p + 32));
    if constexpr (BITS == 2) return half2<H, 0>(p);
}
#endif

// Where code i of a block of `count` codes is among the bytes of its halves: its planes of 4 bits are `count / 4` words
// long, and 128 of them in a whole block.
QLLM_INLINE int place_in_halves(int i, int count) {
    const int words = count / 4, plane = i / words;
    return plane % 2 * 64 + i % words * 2 + plane / 2;
}

// Whether the planes of all fields of a block end together, so that `ShortBlock` can take it.
QLLM_INLINE bool planes_match(int count) { return count % 16 == 0; }

// The last block of a row may hold fewer codes. Its planes are then shorter, and written one after another: each store
// begins where the plane before ends and overwrites what that one wrote too much. Codes after `count` are 0.
template <int BITS>
static __attribute__((noinline)) void unpack_short_block(const uint8_t* p, int count, Words codes[QUARTERS]) {
    static const int FIELDS[9][3] = {{0}, {0}, {2}, {2, 1}, {4}, {4, 1}, {4, 2}, {4, 2, 1}, {8}};
    int16_t space[2 * BLOCK];
    memset(space, 0, sizeof space);
    for (int q = 0; q < QUARTERS; q++) codes[q] = words_zero();
    int shift = 0;
    for (int f = 0; f < 3 && FIELDS[BITS][f]; f++) {
        int width = FIELDS[BITS][f], words = (count * width + 15) / 16;
        if (width == 8) {
            for (int i = 0; i < BLOCK; i++) space[i] = i < count ? p[i] : 0;
        } else {
            int16_t field[BLOCK / 4];  // at most 128 * 4 / 16 words
            memset(field, 0, sizeof field);
            memcpy(field, p, 2 * words);
            Words v = load_words(field);
            for (int plane = 0; plane < 16 / width; plane++)
                store_words(space + plane * words, words_bits(v, width * plane, (int16_t)((1 << width) - 1)));
        }
        for (int q = 0; q < QUARTERS; q++)
            codes[q] = words_or(codes[q], words_left(load_words(space + q * QUARTER), shift));
        p += 2 * words;
        shift += width;
    }
}

#ifdef QLLM_HAS_HALVES
// Halves of a block with fewer than 128 codes whose planes match: a permutation brings planes to where longer ones are.
struct ShortBlock {
    int count, words4, words2, words1;                 // codes, and words of planes of 4, 2 and 1 bits
    alignas(64) uint16_t source2[32], source1[32];     // which word of a field goes where,
    alignas(64) uint16_t shift2[2][32], shift1[2][32]; // and how far it is shifted for each half

    explicit ShortBlock(int codes) : count(codes), words4(codes / 4), words2(codes / 8), words1(codes / 16) {
        for (int t = 0; t < 32; t++) {
            const bool used = t < words4 && planes_match(count);
            source2[t] = (uint16_t)(used ? t % words2 : 0), source1[t] = (uint16_t)(used ? t % words1 : 0);
            for (int h = 0; h < 2; h++) {
                shift2[h][t] = (uint16_t)(used ? 2 * (2 * h + t / words2) : 0);
                shift1[h][t] = (uint16_t)(used ? 4 * h + t / words1 : 0);
            }
        }
    }

    template <int BITS, int H>
    QLLM_MEMBER Ints half_of(const uint8_t* p) const {
        if constexpr (BITS == 8) return load_bytes(p + 64 * H, count - 64 * H);
        Ints codes = ints_zero();
        if constexpr (BITS >= 4) codes = half4_of<H>(load_first_words(p, words4));
        constexpr int low = BITS >= 4 ? 4 : 0;
        if (BITS >= 4) p += 2 * words4;
        if constexpr (BITS & 2) {
            codes = words_or(codes, planes_of<low, 3>(load_first_words(p, words2), source2, shift2[H]));
            p += 2 * words2;
        }
        if constexpr (BITS & 1) codes = words_or(codes, planes_of<low + (BITS & 2), 1>(load_first_words(p, words1), source1, shift1[H]));
        return codes;
    }
};
#endif

}  // namespace QLLM_NAMESPACE
