// Many tokens: a panel of rows is unpacked block by block into a buffer that stays in the first cache, and multiplied with
// all tokens. The lanes of a vector are 16 tokens; a code (a pair or quadruple of codes) is the same for all of them. So
// codes stay in the order of memory, and only the tokens, which are prepared once, are transposed.
//
//   words   code - zero point, times q (or its two words)
//   bytes   code - zero point as a signed byte, times q as unsigned digits of a byte: the codes of quantized tokens,
//           q + 2^15 as two or q + 2^23 as three. 8-bit codes have 128 subtracted instead of the zero point.
#pragma once

#include "level.h"
#include "matrix.h"

namespace QLLM_NAMESPACE {

enum { LANES = 16, PANEL = 96 };

// Vectors of 16 tokens that one digit of a block takes: a lane holds two words or four bytes.
#ifdef QLLM_HAS_BYTES
enum { COLUMN_VECTORS = BLOCK / 4 };
#else
enum { COLUMN_VECTORS = BLOCK / 2 };
#endif

// Tokens made ready for tiles; groups are of 16 tokens.
struct Columns {
    int64_t tokens, groups, blocks, units;
    char* numbers;       // [blocks][groups][digits][128 / n][16][n]: pairs of words or quadruples of bytes
    float* scales;       // [blocks][groups][16]
    float* unit_sums;    // [units][groups][16]: of q; bytes only
    float* zeros;        // [groups][16]: zero points of quantized tokens; bytes only
};

enum { UNITS_AT_A_TIME = 16 };

// What a panel's block holds after unpacking, and the scales of some blocks.
struct Panel {
    alignas(64) int16_t codes[PANEL * BLOCK];                 // or bytes
    float scale[PANEL][UNITS_AT_A_TIME + 16];
    int32_t zero[PANEL][UNITS_AT_A_TIME + 16];
    alignas(64) float sum[QUARTERS][PANEL];                   // of the bytes of a unit
    alignas(64) int32_t shift[QUARTERS][PANEL];               // 2^15 times that
};

struct TilesJob {
    const qllm_matrix* w;
    const Columns* x;
    const void* bias;
    void* y;
    int type;
    bool interleaved;  // bytes are in the order of halves
    const struct ShortBlock* short_block;
    const TileRegisters* registers;  // null without any
    Panel* panel;      // of this thread
    float* space;      // of this thread: [groups][PANEL][16] sums
};

// Scales and zero points of `units` units from `first` on.
static void read_panel(const qllm_matrix* w, int64_t row0, int rows, int64_t first, int units, int quarters, Panel* out) {
    for (int r = 0; r < PANEL; r++) {
        const Row parameters = row_of(w, row0 + (r < rows ? r : rows - 1), quarters);
        read_units(&parameters, first, units, out->scale[r], out->zero[r]);
    }
}

// The codes of one block, whose first unit is number `at` of those that were read; it has `units` of them.
template <int BITS, int UNIT, bool BYTES>
static void unpack_panel(const TilesJob* job, int64_t row0, int rows, int64_t block, int at, int units, Panel* out) {
    enum { PER_BLOCK = QUARTERS / UNIT };
    const qllm_matrix* w = job->w;
    const bool whole = (block + 1) * BLOCK <= w->length;
    const uint8_t* base = (const uint8_t*)w->words + block * block_bytes<BITS>();
#ifdef QLLM_HAS_HALVES
    if constexpr (BYTES && UNIT == QUARTERS) {
        const int count = (int)(w->length - block * BLOCK);
        if (whole || BITS == 8 || planes_match(count)) {
            for (int r = 0; r < PANEL; r += 4) {
                Floats sums[4];
                for (int i = 0; i < 4; i++) {
                    const int64_t row = row0 + (r + i < rows ? r + i : rows - 1);
                    const uint8_t* p = base + row * w->word_stride * 2;
                    __builtin_prefetch(p + block_bytes<BITS>());
                    if (BITS > 4) __builtin_prefetch(p + block_bytes<BITS>() + 64);
                    const int8_t subtracted = (int8_t)(BITS == 8 ? 128 : out->zero[r + i][at]);
                    Ints first = whole ? half<BITS, 0>(p) : job->short_block->half_of<BITS, 0>(p);
                    Ints second = whole ? half<BITS, 1>(p) : job->short_block->half_of<BITS, 1>(p);
                    first = bytes_minus(first, subtracted), second = bytes_minus(second, subtracted);
                    int8_t* codes = (int8_t*)out->codes + (r + i) * BLOCK;
                    ints_store(codes, first);
                    ints_store(codes + 64, second);
                    sums[i] = floats_from(dot_bytes(dot_bytes(ints_zero(), bytes_all(1), first), bytes_all(1), second));
                }
                floats_sum4(sums, out->sum[0] + r);
            }
            for (int r = 0; r < PANEL; r += 16) ints_store(out->shift[0] + r, ints_times_32768(ints_round(floats_load(out->sum[0] + r))));
            return;
        }
    }
#endif
    for (int r = 0; r < PANEL; r++) {
        const uint8_t* p = base + (row0 + (r < rows ? r : rows - 1)) * w->word_stride * 2;
        __builtin_prefetch(p + block_bytes<BITS>());
        if (BITS > 4) __builtin_prefetch(p + block_bytes<BITS>() + 64);
        Words quarter[QUARTERS];
        if (whole)
            unpack_block<BITS>(p, quarter);
        else
            unpack_short_block<BITS>(p, (int)(w->length - block * BLOCK), quarter);
        for (int u = 0; u < PER_BLOCK; u++) {
            const int subtracted = u >= units ? 0 : BYTES && BITS == 8 ? 128 : out->zero[r][at + u];
            [[maybe_unused]] Ints sum = ints_zero();
            for (int q = u * UNIT; q < (u + 1) * UNIT; q++) {
                Words v = words_minus(quarter[q], (int16_t)subtracted);
#ifdef QLLM_HAS_BYTES
                if constexpr (BYTES) {
                    int8_t* codes = (int8_t*)out->codes + r * BLOCK;
                    if (job->interleaved) {
                        int8_t bytes[QUARTER];
                        store_low_bytes(bytes, v);
                        for (int i = 0; i < QUARTER; i++) codes[place_in_halves(q * QUARTER + i, BLOCK)] = bytes[i];
                    } else {
                        store_low_bytes(codes + q * QUARTER, v);
                    }
                    sum = dot_words(sum, v, words_all(1));
                    continue;
                }
#endif
                store_words(out->codes + r * BLOCK + q * QUARTER, v);
            }
            if constexpr (BYTES) {
                out->sum[u][r] = (float)ints_sum(sum);
                out->shift[u][r] = ints_sum(sum) * 32768;
            }
        }
    }
}

// acc + products of a vector of tokens with the codes of one row: a pair of words or a quadruple of bytes.
template <bool BYTES>
QLLM_INLINE Ints multiply(Ints acc, Ints column, Words code) {
#ifdef QLLM_HAS_BYTES
    if constexpr (BYTES) return dot_bytes(acc, column, ints_from(code));
#endif
    return dot_words(acc, words_from(column), code);
}

// Adds the integer sums of one unit, of a row times 16 tokens, to the sums in floating point.
template <int BITS, bool BYTES, int DIGITS>
struct Drain {
    const float *row_scale, *row_sum;
    const int32_t *row_shift, *row_zero;
    float* sums;
    Floats scale, zero, x_sum;
    enum { ROW_STEP = UNITS_AT_A_TIME + 16 };

    // `at` is the unit among those whose scales were read, `unit` the one in its block.
    QLLM_MEMBER Drain(const Panel* panel, int row, const Columns* x, int64_t block, int at, int unit, int quarters, int64_t group, float* all_sums) {
        row_scale = panel->scale[row] + at, row_zero = panel->zero[row] + at;
        row_sum = panel->sum[unit] + row, row_shift = panel->shift[unit] + row;
        sums = all_sums + (group * PANEL + row) * LANES;
        scale = floats_load(x->scales + (block * x->groups + group) * LANES);
        if (BYTES && DIGITS == 1) zero = floats_load(x->zeros + group * LANES);
        if (BYTES && BITS == 8) x_sum = floats_load(x->unit_sums + ((block * (QUARTERS / quarters) + unit) * x->groups + group) * LANES);
    }

    QLLM_MEMBER void add(int r, Ints high, Ints middle, Ints low) const {
        Floats value;
        if constexpr (BYTES && DIGITS == 1) {  // exact: all are integers below 2^24
            value = floats_fnma(zero, floats_all(row_sum[r]), floats_from(high));
        } else if constexpr (BYTES) {
#ifdef QLLM_HAS_BYTES
            value = floats_from(ints_minus(ints_plus(ints_times_256(high), middle), ints_all(row_shift[r])));
#endif
            if (DIGITS == 3) value = floats_fma(value, floats_all(256.0f), floats_from(low));
        } else {
            value = floats_from(high);
            if (DIGITS == 2) value = floats_fma(value, floats_all(65536.0f), floats_from(middle));
        }
        if (BYTES && BITS == 8) value = floats_fnma(floats_all((float)(row_zero[r * ROW_STEP] - 128)), x_sum, value);
        const Floats factor = floats_mul(floats_all(row_scale[r * ROW_STEP]), scale);
        floats_store(sums + r * LANES, floats_fma(factor, value, floats_load(sums + r * LANES)));
    }
};

// How large a tile is: as many sums as there are registers for. Heights divide PANEL.
#if QLLM_ACCUMULATORS >= 24
enum { TILE_VECTORS = 2 };
constexpr int tile_height(int streams) { return streams == 1 ? 16 : streams == 6 ? 4 : 24 / streams; }
#define EACH_ROW(F) QLLM_16(F)
#define EACH_STREAM(F, r) F(0, a, r) F(1, b, r) F(2, c, r) F(3, d, r) F(4, e, r) F(5, f, r)
#else
enum { TILE_VECTORS = 1 };
constexpr int tile_height(int streams) { return 6 / streams; }
#define EACH_ROW(F) QLLM_4(F) F(4) F(5)
#define EACH_STREAM(F, r) F(0, a, r) F(1, b, r) F(2, c, r)
#endif

// A tile of rows and VECTORS (1 or 2) groups of tokens over one unit; adds to sums [groups][PANEL][16].
template <int BITS, int UNIT, bool BYTES, int DIGITS, int VECTORS>
static void tile(const Panel* panel, int row, const Columns* x, int64_t block, int at, int unit, int64_t group, float* sums) {
    enum { STREAMS = VECTORS * DIGITS, HEIGHT = tile_height(STREAMS) };
    enum { SIZE = BYTES ? 1 : 2, PER_VECTOR = 4 / SIZE, VECTOR_BYTES = LANES * 4 };
    enum { COUNT = UNIT * QUARTER / PER_VECTOR, STREAM_BYTES = BLOCK / PER_VECTOR * VECTOR_BYTES };
    const char* columns = x->numbers + (block * x->groups + group) * DIGITS * STREAM_BYTES + unit * COUNT * VECTOR_BYTES;
    const char* codes = (const char*)panel->codes + (row * BLOCK + unit * UNIT * QUARTER) * SIZE;
#define ZERO(s, stream, r) Ints stream##r = ints_zero();
#define ZEROS(r) EACH_STREAM(ZERO, r)
    EACH_ROW(ZEROS)
    for (int i = 0; i < COUNT; i++, columns += VECTOR_BYTES, codes += 4) {
#define COLUMN(s, stream, _) [[maybe_unused]] const Ints stream##x = s < STREAMS ? ints_load(columns + s * STREAM_BYTES) : ints_zero();
        EACH_STREAM(COLUMN, )
#undef COLUMN
#define PRODUCT(s, stream, r) \
    if constexpr (s < STREAMS) stream##r = multiply<BYTES>(stream##r, stream##x, code);
#define PRODUCTS(r)                                              \
    if constexpr (r < HEIGHT) {                                  \
        const Words code = words_pair(codes + r * BLOCK * SIZE); \
        EACH_STREAM(PRODUCT, r)                                  \
    }
        EACH_ROW(PRODUCTS)
    }
    const Drain<BITS, BYTES, DIGITS> one(panel, row, x, block, at, unit, UNIT, group, sums);
#define FIRST(r) \
    if constexpr (r < HEIGHT) one.add(r, a##r, b##r, c##r);
    EACH_ROW(FIRST)
#if QLLM_ACCUMULATORS >= 24
    if constexpr (VECTORS == 2) {
        const Drain<BITS, BYTES, DIGITS> two(panel, row, x, block, at, unit, UNIT, group + 1, sums);
#define SECOND(r)                                                    \
    if constexpr (r < HEIGHT) {                                      \
        if constexpr (DIGITS == 1) two.add(r, b##r, b##r, b##r);     \
        if constexpr (DIGITS == 2) two.add(r, c##r, d##r, d##r);     \
        if constexpr (DIGITS == 3) two.add(r, d##r, e##r, f##r);     \
    }
        EACH_ROW(SECOND)
    }
#undef SECOND
#endif
#undef FIRST
#undef PRODUCTS
#undef PRODUCT
#undef ZEROS
#undef ZERO
}

#ifdef QLLM_HAS_TILES
// The same for TILE_ROWS rows, with the registers made for it.
template <int BITS, int UNIT, int DIGITS, int VECTORS>
static void tile_in_registers(const TilesJob* job, int row, int64_t block, int at, int unit, int64_t group) {
    enum { STREAMS = VECTORS * DIGITS, CODES = UNIT * QUARTER, STREAM_BYTES = BLOCK * LANES };
    const Columns* x = job->x;
    const int8_t* codes = (const int8_t*)job->panel->codes + row * BLOCK + unit * CODES;
    const uint8_t* columns = (const uint8_t*)x->numbers + (block * x->groups + group) * DIGITS * STREAM_BYTES + unit * CODES * LANES;
    alignas(64) int32_t products[STREAMS][TILE_ROWS][LANES];
    job->registers->multiply(codes, columns, STREAM_BYTES, STREAMS, CODES, products[0][0]);
    for (int v = 0; v < VECTORS; v++) {
        const Drain<BITS, true, DIGITS> drain(job->panel, row, x, block, at, unit, UNIT, group + v, job->space);
        const int32_t(*digit)[TILE_ROWS][LANES] = products + v * DIGITS;
        for (int r = 0; r < TILE_ROWS; r++)
            drain.add(r, ints_load(digit[0][r]), ints_load(digit[DIGITS > 1][r]), ints_load(digit[DIGITS - 1][r]));
    }
}
#endif

// A panel times VECTORS groups of tokens over one unit.
template <int BITS, int UNIT, bool BYTES, int DIGITS, int VECTORS>
QLLM_INLINE void panel_times_tokens(const TilesJob* job, int rows, int64_t block, int at, int unit, int64_t group) {
#ifdef QLLM_HAS_TILES
    if constexpr (BYTES)
        if (job->registers) {
            for (int row = 0; row < rows; row += TILE_ROWS)
                tile_in_registers<BITS, UNIT, DIGITS, VECTORS>(job, row, block, at + unit, unit, group);
            return;
        }
#endif
    for (int row = 0; row < rows; row += tile_height(VECTORS * DIGITS))
        tile<BITS, UNIT, BYTES, DIGITS, VECTORS>(job->panel, row, job->x, block, at + unit, unit, group, job->space);
}

template <int BITS, int UNIT, bool BYTES, int DIGITS>
static void tiles_range(const TilesJob* job, int64_t first, int64_t last) {
    enum { PER_BLOCK = QUARTERS / UNIT };
    const qllm_matrix* w = job->w;
    const Columns* x = job->x;
    const int size = job->type == QLLM_FLOAT32 ? 4 : 2;
    if (job->registers) job->registers->begin(UNIT * QUARTER);
    for (int64_t row0 = first; row0 < last; row0 += PANEL) {
        const int rows = last - row0 < PANEL ? (int)(last - row0) : (int)PANEL;
        for (int64_t i = 0; i < x->groups * PANEL; i++) floats_store(job->space + i * LANES, floats_zero());
        for (int64_t block = 0; block < x->blocks; block++) {
            const int64_t have = x->units - block * PER_BLOCK;
            const int units = have < PER_BLOCK ? (int)have : (int)PER_BLOCK, at = (int)(block * PER_BLOCK % UNITS_AT_A_TIME);
            if (at == 0) read_panel(w, row0, rows, block * PER_BLOCK, have < UNITS_AT_A_TIME ? (int)have : (int)UNITS_AT_A_TIME, UNIT, job->panel);
            unpack_panel<BITS, UNIT, BYTES>(job, row0, rows, block, at, units, job->panel);
            for (int unit = 0; unit < units; unit++) {
                int64_t group = 0;
                for (; group + TILE_VECTORS <= x->groups; group += TILE_VECTORS)
                    panel_times_tokens<BITS, UNIT, BYTES, DIGITS, TILE_VECTORS>(job, rows, block, at, unit, group);
                for (; group < x->groups; group++)
                    panel_times_tokens<BITS, UNIT, BYTES, DIGITS, 1>(job, rows, block, at, unit, group);
            }
        }
        for (int64_t t = 0; t < x->tokens; t++)
            for (int r = 0; r < rows; r += LANES) {
                const int count = rows - r < LANES ? rows - r : (int)LANES;
                Floats y = floats_column(job->space + ((t / LANES) * PANEL + r) * LANES + t % LANES);
                if (job->bias) y = floats_add(y, floats_from_memory((const char*)job->bias + (row0 + r) * size, job->type, count));
                floats_to_memory((char*)job->y + (t * w->rows + row0 + r) * size, job->type, count, y);
            }
    }
    if (job->registers) job->registers->end();
}

typedef void (*TilesKernel)(const TilesJob*, int64_t, int64_t);

template <int BITS, bool BYTES, int DIGITS>
static TilesKernel tiles_kernel_of([[maybe_unused]] int quarters) {
#if QLLM_UNITS & 4
    if (quarters == 4) return tiles_range<BITS, 4, BYTES, DIGITS>;
#endif
#if QLLM_UNITS & 2
    if (quarters == 2) return tiles_range<BITS, 2, BYTES, DIGITS>;
#endif
    return tiles_range<BITS, 1, BYTES, DIGITS>;
}

template <bool BYTES, int DIGITS>
static TilesKernel tiles_kernel(int bits, int quarters) {
    switch (bits) {
        case 2: return tiles_kernel_of<2, BYTES, DIGITS>(quarters);
        case 3: return tiles_kernel_of<3, BYTES, DIGITS>(quarters);
        case 4: return tiles_kernel_of<4, BYTES, DIGITS>(quarters);
        case 5: return tiles_kernel_of<5, BYTES, DIGITS>(quarters);
        case 6: return tiles_kernel_of<6, BYTES, DIGITS>(quarters);
        case 7: return tiles_kernel_of<7, BYTES, DIGITS>(quarters);
        default: return tiles_kernel_of<8, BYTES, DIGITS>(quarters);
    }
}

static TilesKernel tiles_kernel(int bits, int quarters, int digits) {
#ifdef QLLM_HAS_BYTES
    if (digits == 3) return tiles_kernel<true, 3>(bits, quarters);
    return digits == 2 ? tiles_kernel<true, 2>(bits, quarters) : tiles_kernel<true, 1>(bits, quarters);
#else
    return digits == 2 ? tiles_kernel<false, 2>(bits, quarters) : tiles_kernel<false, 1>(bits, quarters);
#endif
}

}  // namespace QLLM_NAMESPACE
