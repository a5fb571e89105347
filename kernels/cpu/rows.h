// Few tokens: each row of the matrix is read once, in the order it lies in memory, and multiplied with all tokens.
//
//   y[t, o] = sum over units u of  scale_w[o, u] scale_x[t, u] (sum over i in u of q[t, i] w[o, i]  -  zero_w[o, u] sum_q[t, u])
//
// The bracket is in integers and exact; the sum over units is in float32. Four rows are read side by side, so that the
// memory sees four streams and the processor four chains of additions.
//
// The integers q are cut into digits that the processor can multiply:
//
//   words   q itself where it fits 16 bits, else 65536 high + low
//   bytes   q itself where it fits 8 bits, else 256 high + low, else 65536 high + 256 middle + low; all signed
//
// Bytes are for units of a whole block; the codes of smaller groups lie in the same word (see `place_in_halves`).
#pragma once

#include "matrix.h"

namespace QLLM_NAMESPACE {

enum { ROWS = 4, PREFETCH = 1024 };

enum Kind { WORDS_1, WORDS_2, BYTES_1, BYTES_2, BYTES_3 };

constexpr bool is_bytes(int kind) { return kind >= BYTES_1; }
constexpr int digits_of(int kind) { return kind == WORDS_1 || kind == BYTES_1 ? 1 : kind == BYTES_3 ? 3 : 2; }
// Sums that are kept apart until they are floats: the low digit of the widest kinds would not fit 32 bits with the others.
constexpr int sums_of(int kind) { return kind == WORDS_2 || kind == BYTES_3 ? 2 : 1; }
constexpr int bytes_per_block(int kind) { return BLOCK * digits_of(kind) * (is_bytes(kind) ? 1 : 2); }

// Vectors made ready. Per token: digits, and what belongs to each unit.
struct Prepared {
    int64_t tokens, blocks, units;
    char* numbers;       // [tokens][blocks][digits][128] words or bytes
    int32_t* unit_sums;  // [tokens][sums][units + 16]: of q, or of its high digits and its low one
    float* unit_scales;  // [tokens][units + 16]
};

struct RowsJob {
    const qllm_matrix* w;
    const Prepared* x;
    const void* bias;
    void* y;
    int type;
    const struct ShortBlock* short_block;  // bytes only
};

// The codes of a block, as what a kind multiplies.
struct BlockOfWords {
    Words a, b, c, d;
};
template <int BITS>
QLLM_INLINE BlockOfWords words_of(const uint8_t* p) {
    return {quarter<BITS, 0>(p), quarter<BITS, 1>(p), quarter<BITS, 2>(p), quarter<BITS, 3>(p)};
}
template <int BITS>
static __attribute__((noinline)) BlockOfWords short_words_of(const uint8_t* p, int count) {
    Words q[QUARTERS];
    unpack_short_block<BITS>(p, count, q);
    return {q[0], q[1], q[2], q[3]};
}

// total + scale (sum of products of a block with one token - zero sum_q); `minus` is - zero sum_q of each unit.
template <int UNIT, int KIND>
QLLM_INLINE Floats add_block(Floats total, BlockOfWords w, const char* numbers, const int32_t* minus, const float* scale) {
    const int16_t* x = (const int16_t*)numbers;
    const auto unit = [&](int u, int first, Words a, Words b, Words c, Words d) __attribute__((always_inline)) {
        const auto dot = [&](const int16_t* digit, int32_t start) __attribute__((always_inline)) {
            Ints sum = dot_words(ints_first(start), a, digit);
            if (UNIT > 1) sum = dot_words(sum, b, digit + QUARTER);
            if (UNIT > 2) sum = dot_words(dot_words(sum, c, digit + 2 * QUARTER), d, digit + 3 * QUARTER);
            return floats_from(sum);
        };
        Floats sum = dot(x + first * QUARTER, minus[u]);
        if (KIND == WORDS_2) sum = floats_fma(sum, floats_all(65536.0f), dot(x + BLOCK + first * QUARTER, minus[u + STRETCH + 16]));
        total = floats_fma(floats_all(scale[u]), sum, total);
    };
    unit(0, 0, w.a, w.b, w.c, w.d);
    if constexpr (UNIT == 2) unit(1, 2, w.c, w.d, w.a, w.b);
    if constexpr (UNIT == 1) unit(1, 1, w.b, w.a, w.a, w.a), unit(2, 2, w.c, w.a, w.a, w.a), unit(3, 3, w.d, w.a, w.a, w.a);
    return total;
}

#ifdef QLLM_HAS_HALVES
struct BlockOfBytes {
    Ints first, second;
};
template <int BITS>
QLLM_INLINE BlockOfBytes bytes_of(const uint8_t* p) {
    return {half<BITS, 0>(p), half<BITS, 1>(p)};
}
template <int BITS>
static __attribute__((noinline)) BlockOfBytes short_bytes_of(const uint8_t* p, int count, const ShortBlock* planes) {
    if (BITS == 8 || planes_match(count)) return {planes->half_of<BITS, 0>(p), planes->half_of<BITS, 1>(p)};
    Words q[QUARTERS];
    unpack_short_block<BITS>(p, count, q);
    return {words_or(q[0], words_left(q[2], 8)), words_or(q[1], words_left(q[3], 8))};
}

template <int UNIT, int KIND>
QLLM_INLINE Floats add_block(Floats total, BlockOfBytes w, const char* numbers, const int32_t* minus, const float* scale) {
    const int8_t* x = (const int8_t*)numbers;
    const auto dot = [&](int digit, Ints start) __attribute__((always_inline)) {
        return dot_bytes(dot_bytes(start, w.first, x + digit * BLOCK), w.second, x + digit * BLOCK + 64);
    };
    if constexpr (KIND == BYTES_1) return floats_fma(floats_all(*scale), floats_from(dot(0, ints_first(*minus))), total);
    const Ints two = ints_plus(ints_times_256(dot(0, ints_zero())), dot(1, ints_first(*minus)));
    Floats sum = floats_from(two);
    if constexpr (KIND == BYTES_3) sum = floats_fma(sum, floats_all(256.0f), floats_from(dot(2, ints_first(minus[STRETCH + 16]))));
    return floats_fma(floats_all(*scale), sum, total);
}
#endif

template <int BITS, int KIND>
QLLM_INLINE auto codes_of(const uint8_t* p) {
#ifdef QLLM_HAS_HALVES
    if constexpr (is_bytes(KIND))
        return bytes_of<BITS>(p);
    else
#endif
        return words_of<BITS>(p);
}
// What the units of one stretch of blocks need, of ROWS rows and TOKENS tokens.
template <int TOKENS, int SUMS>
struct Stretch {
    alignas(64) float scale[ROWS][TOKENS][STRETCH + 16];            // scale_w scale_x
    alignas(64) int32_t minus[ROWS][TOKENS][SUMS][STRETCH + 16];  // - zero_w sum_x
};

template <int TOKENS, int SUMS>
static void fill(Stretch<TOKENS, SUMS>* out, const Row parameters[ROWS], const Prepared* x, int64_t token, int64_t first, int units) {
    const int n = x->units - first < units ? (int)(x->units - first) : units;
    for (int r = 0; r < ROWS; r++) {
        alignas(64) float ws[STRETCH + 16];
        alignas(64) int32_t wz[STRETCH + 16];
        read_units(&parameters[r], first, n, ws, wz);
        for (int t = 0; t < TOKENS; t++) {
            const float* xs = x->unit_scales + (token + t) * (x->units + 16) + first;
            const int32_t* sums = x->unit_sums + (token + t) * SUMS * (x->units + 16) + first;
            for (int u = 0; u < n; u += 16) {
                floats_store(out->scale[r][t] + u, floats_mul(floats_load(ws + u), floats_load(xs + u)));
                for (int d = 0; d < SUMS; d++)
                    ints_store(out->minus[r][t][d] + u, ints_negative_product(ints_load(wz + u), ints_load(sums + d * (x->units + 16) + u)));
            }
            for (int u = n; u < units; u++) {  // units after the end of the row, in its last block
                out->scale[r][t][u] = 0.0f;
                for (int d = 0; d < SUMS; d++) out->minus[r][t][d][u] = 0;
            }
        }
    }
}

// Four rows (the last may repeat) times tokens token .. token + TOKENS - 1, to sums [TOKENS][4].
template <int BITS, int UNIT, int TOKENS, int KIND>
static void rows_times_tokens(const RowsJob* job, const int64_t rows[ROWS], int64_t token, float* sums) {
    enum { PER_BLOCK = QUARTERS / UNIT, STEP = STRETCH / PER_BLOCK };  // blocks at a time
    const qllm_matrix* w = job->w;
    const Prepared* x = job->x;
    const int64_t whole = w->length / BLOCK, blocks = x->blocks;
    const uint8_t* codes[ROWS];
    Row parameters[ROWS];
    for (int r = 0; r < ROWS; r++) {
        codes[r] = (const uint8_t*)(w->words + rows[r] * w->word_stride);
        parameters[r] = row_of(w, rows[r], UNIT);
    }
    enum { X_BYTES = bytes_per_block(KIND) };
    const char* numbers = x->numbers + token * blocks * X_BYTES;
    Stretch<TOKENS, sums_of(KIND)> stretch;

#define ZERO(r) Floats r##_0 = floats_zero(), r##_1 = r##_0, r##_2 = r##_0, r##_3 = r##_0;
    ZERO(a) ZERO(b) ZERO(c) ZERO(d)
#undef ZERO
#define TOKEN(r, row, t)                                                                                            \
    if constexpr (t < TOKENS)                                                                                       \
        r##_##t = add_block<UNIT, KIND>(r##_##t, w##row, numbers + (t * blocks + b) * X_BYTES, stretch.minus[row][t][0] + at, \
                                        stretch.scale[row][t] + at);
#define EACH_TOKEN(r, row) TOKEN(r, row, 0) TOKEN(r, row, 1) TOKEN(r, row, 2) TOKEN(r, row, 3)
#define BLOCK_OF_ROW(r, row)                                                                                        \
    {                                                                                                               \
        const uint8_t* p = codes[row] + b * block_bytes<BITS>();                                                    \
        __builtin_prefetch(p + PREFETCH);                                                                           \
        if (BITS > 4) __builtin_prefetch(p + PREFETCH + 64);                                                        \
        const auto w##row = codes_of<BITS, KIND>(p);                                                                \
        EACH_TOKEN(r, row)                                                                                          \
    }
#define SHORT_BLOCK_OF_ROW(r, row)                                                                                  \
    {                                                                                                               \
        const int count = (int)(w->length - whole * BLOCK);                                                         \
        const auto w##row = SHORT_CODES(codes[row] + b * block_bytes<BITS>(), count);                               \
        EACH_TOKEN(r, row)                                                                                          \
    }
#ifdef QLLM_HAS_HALVES
    const auto short_codes = [&](const uint8_t* p, int count) __attribute__((always_inline)) {
        if constexpr (is_bytes(KIND))
            return short_bytes_of<BITS>(p, count, job->short_block);
        else
            return short_words_of<BITS>(p, count);
    };
#define SHORT_CODES(p, count) short_codes(p, count)
#else
#define SHORT_CODES(p, count) short_words_of<BITS>(p, count)
#endif
    for (int64_t from = 0; from < blocks; from += STEP) {
        const int64_t to = from + STEP < blocks ? from + STEP : blocks;
        fill(&stretch, parameters, x, token, from * PER_BLOCK, (int)(to - from) * PER_BLOCK);
        int64_t b = from;
        for (; b < (to < whole ? to : whole); b++) {
            const int64_t at = (b - from) * PER_BLOCK;
            BLOCK_OF_ROW(a, 0) BLOCK_OF_ROW(b, 1) BLOCK_OF_ROW(c, 2) BLOCK_OF_ROW(d, 3)
        }
        if (b < to) {
            const int64_t at = (b - from) * PER_BLOCK;
            SHORT_BLOCK_OF_ROW(a, 0) SHORT_BLOCK_OF_ROW(b, 1) SHORT_BLOCK_OF_ROW(c, 2) SHORT_BLOCK_OF_ROW(d, 3)
        }
    }
#undef SHORT_CODES
#undef SHORT_BLOCK_OF_ROW
#undef BLOCK_OF_ROW
#undef EACH_TOKEN
#undef TOKEN
#define SUM(t)                                                \
    if constexpr (t < TOKENS) {                               \
        const Floats four[ROWS] = {a_##t, b_##t, c_##t, d_##t}; \
        floats_sum4(four, sums + t * ROWS);                   \
    }
    QLLM_4(SUM)
#undef SUM
}

template <int BITS, int UNIT, int KIND>
static void rows_range(const RowsJob* job, int64_t first, int64_t last) {
    const qllm_matrix* w = job->w;
    const int64_t tokens = job->x->tokens;
    const int size = job->type == QLLM_FLOAT32 ? 4 : 2;
    // four stretches of rows side by side, so that each stream of memory goes on where its last row ended
    const int64_t each = (last - first + ROWS - 1) / ROWS;
    for (int64_t i = 0; i < each; i++) {
        int64_t rows[ROWS];
        for (int r = 0; r < ROWS; r++) rows[r] = first + r * each + i < last ? first + r * each + i : last - 1;
        for (int64_t t = 0; t < tokens;) {
            alignas(64) float sums[4 * ROWS + 16];
            int done = 1;
            if (QLLM_ROW_TOKENS >= 4 && tokens - t >= 4)
                rows_times_tokens<BITS, UNIT, QLLM_ROW_TOKENS, KIND>(job, rows, t, sums), done = 4;
            else if (tokens - t >= 2)
                rows_times_tokens<BITS, UNIT, 2, KIND>(job, rows, t, sums), done = 2;
            else
                rows_times_tokens<BITS, UNIT, 1, KIND>(job, rows, t, sums);
            for (int k = 0; k < done; k++)
                for (int r = 0; r < ROWS; r++) {
                    Floats y = floats_all(sums[k * ROWS + r]);
                    if (job->bias) y = floats_add(y, floats_from_memory((const char*)job->bias + rows[r] * size, job->type, 1));
                    floats_to_memory((char*)job->y + ((t + k) * w->rows + rows[r]) * size, job->type, 1, y);
                }
            t += done;
        }
    }
}

typedef void (*RowsKernel)(const RowsJob*, int64_t, int64_t);

template <int BITS>
static RowsKernel rows_kernel_of([[maybe_unused]] int quarters, int kind) {
#ifdef QLLM_HAS_HALVES
    if (kind == BYTES_1) return rows_range<BITS, 4, BYTES_1>;
    if (kind == BYTES_2) return rows_range<BITS, 4, BYTES_2>;
    if (kind == BYTES_3) return rows_range<BITS, 4, BYTES_3>;
#elif QLLM_UNITS & 4
    if (quarters == 4) return kind == WORDS_1 ? rows_range<BITS, 4, WORDS_1> : rows_range<BITS, 4, WORDS_2>;
#endif
#if QLLM_UNITS & 2
    if (quarters == 2) return kind == WORDS_1 ? rows_range<BITS, 2, WORDS_1> : rows_range<BITS, 2, WORDS_2>;
#endif
    return kind == WORDS_1 ? rows_range<BITS, 1, WORDS_1> : rows_range<BITS, 1, WORDS_2>;
}

static RowsKernel rows_kernel(int bits, int quarters, int kind) {
    switch (bits) {
        case 2: return rows_kernel_of<2>(quarters, kind);
        case 3: return rows_kernel_of<3>(quarters, kind);
        case 4: return rows_kernel_of<4>(quarters, kind);
        case 5: return rows_kernel_of<5>(quarters, kind);
        case 6: return rows_kernel_of<6>(quarters, kind);
        case 7: return rows_kernel_of<7>(quarters, kind);
        default: return rows_kernel_of<8>(quarters, kind);
    }
}

}  // namespace QLLM_NAMESPACE
