// Codes of a row, as 16-bit integers in their order, -> words of packed codes: the other way of unpack.h.
#pragma once

#include "pairs.h"
#include "unpack.h"

namespace QLLM_NAMESPACE {

// Four quarters of a block side by side in the nibbles of 32 words.
QLLM_INLINE Words nibbles(Words q0, Words q1, Words q2, Words q3) {
    return words_or(words_or(q0, words_left_by<4>(q1)), words_or(words_left_by<8>(q2), words_left_by<12>(q3)));
}

template <int BITS>
QLLM_INLINE void pack_block(const int16_t* codes, uint8_t* p) {
    const Words q0 = load_words(codes), q1 = load_words(codes + 32), q2 = load_words(codes + 64), q3 = load_words(codes + 96);
    if constexpr (BITS == 8) {
        store_bytes(p, q0), store_bytes(p + 32, q1), store_bytes(p + 64, q2), store_bytes(p + 96, q3);
    } else if constexpr (BITS > 4) {
        store_words(p, nibbles(words_and(q0, 15), words_and(q1, 15), words_and(q2, 15), words_and(q3, 15)));
        const Words high = nibbles(words_right_by<4>(q0), words_right_by<4>(q1), words_right_by<4>(q2), words_right_by<4>(q3));
        if constexpr (BITS == 5) store_fold1(p + 64, high);
        if constexpr (BITS == 6) store_fold2(p + 64, high);
        if constexpr (BITS == 7) {
            store_fold2(p + 64, words_and(high, 0x3333));
            store_fold1(p + 96, words_and(words_right_by<2>(high), 0x1111));
        }
    } else {
        const Words all = nibbles(q0, q1, q2, q3);
        if constexpr (BITS == 4) store_words(p, all);
        if constexpr (BITS == 3) {
            store_fold2(p, words_and(all, 0x3333));
            store_fold1(p + 32, words_and(words_right_by<2>(all), 0x1111));
        }
        if constexpr (BITS == 2) store_fold2(p, all);
    }
}

// The last block of a row, of fewer than 128 codes. At least 32 zeros follow them.
template <int BITS>
static __attribute__((noinline)) void pack_short_block(const int16_t* codes, int count, uint8_t* p) {
    static const int FIELDS[9][3] = {{0}, {0}, {2}, {2, 1}, {4}, {4, 1}, {4, 2}, {4, 2, 1}, {8}};
    int shift = 0;
    for (int f = 0; f < 3 && FIELDS[BITS][f]; f++) {
        const int width = FIELDS[BITS][f], words = (count * width + 15) / 16;
        if (width == 8) {
            for (int i = 0; i < 2 * words; i++) p[i] = (uint8_t)codes[i];
        } else {
            Words field = words_zero();
            for (int plane = 0; plane < 16 / width; plane++) {
                const Words part = words_bits(load_words(codes + plane * words), shift, (int16_t)((1 << width) - 1));
                field = words_or(field, words_left(part, width * plane));
            }
            int16_t space[32];
            store_words(space, field);
            memcpy(p, space, 2 * words);
        }
        p += 2 * words;
        shift += width;
    }
}

// `count` codes from the beginning of a block on. At least 32 zeros follow them where they are no whole blocks.
template <int BITS>
static void pack_codes(const int16_t* codes, int64_t count, uint8_t* p) {
    for (; count >= BLOCK; count -= BLOCK, codes += BLOCK, p += block_bytes<BITS>()) pack_block<BITS>(codes, p);
    if (count) pack_short_block<BITS>(codes, (int)count, p);
}

// `count` codes; up to 127 more are written.
template <int BITS>
static void unpack_codes(const uint8_t* p, int64_t count, int16_t* codes) {
    Words block[QUARTERS];
    for (; count > 0; count -= BLOCK, codes += BLOCK, p += block_bytes<BITS>()) {
        if (count >= BLOCK)
            unpack_block<BITS>(p, block);
        else
            unpack_short_block<BITS>(p, (int)count, block);
        for (int q = 0; q < QUARTERS; q++) store_words(codes + q * QUARTER, block[q]);
    }
}

typedef void (*PackCodes)(const int16_t*, int64_t, uint8_t*);
typedef void (*UnpackCodes)(const uint8_t*, int64_t, int16_t*);

static inline PackCodes pack_codes_of(int bits) {
    static const PackCodes ALL[] = {pack_codes<2>, pack_codes<3>, pack_codes<4>, pack_codes<5>, pack_codes<6>, pack_codes<7>, pack_codes<8>};
    return ALL[bits - 2];
}
static inline UnpackCodes unpack_codes_of(int bits) {
    static const UnpackCodes ALL[] = {unpack_codes<2>, unpack_codes<3>, unpack_codes<4>, unpack_codes<5>,
                                      unpack_codes<6>, unpack_codes<7>, unpack_codes<8>};
    return ALL[bits - 2];
}

}  // namespace QLLM_NAMESPACE
