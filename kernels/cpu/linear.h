// y = x W^T + bias for packed matrices that share x: prepares the tokens once, then spreads rows over threads.
#pragma once

#include "level.h"
#include "rows.h"
#include "tiles.h"

namespace QLLM_NAMESPACE {

// From so many tokens on, tiles are faster than reading rows.
enum { TILES_FROM = 10 };

struct LinearJob {
    const qllm_matrix* weights;
    int count, quarters;
    bool tiles, interleaved;
    int kind;    // of rows
    int digits;  // of tiles
    const TileRegisters* registers;
    const qllm_vectors* x;
    const void* const* bias;
    void* const* y;
    int64_t length, blocks, units;
    int short_count;                      // codes in the last block, if their bytes are in an order of their own
    const struct ShortBlock* short_block;
    Prepared rows;
    Columns columns;
    char* space;         // of threads
    int64_t space_size;  // of each
    int64_t steps;       // groups of rows in all matrices
    int step_rows;
};

static int64_t prepare_space(int64_t blocks) { return blocks * (BLOCK * 4 + 4); }

static Token integers_of(const LinearJob* job, int64_t t, char* space) {
    Token token = {(int32_t*)space, (float*)(space + job->blocks * BLOCK * 4), 0, 1.0f};
    if (job->x->bits)
        quantize_token(job->x, t, job->length, &token);
    else
        fixed_point_token(job->x, t, job->length, &token);
    return token;
}

#ifdef QLLM_HAS_HALVES
// The numbers of the last block where the halves of a whole block would have them.
static void spread_short_block(const int32_t* q, int count, int32_t out[BLOCK]) {
    for (int i = 0; i < BLOCK; i++) out[i] = 0;
    for (int i = 0; i < count; i++) {
        const int place = place_in_halves(i, count);
        out[place / 64 * QUARTER + place % 64 / 2 + place % 2 * 64] = q[i];
    }
}
#endif

template <int KIND>
static void digits_of_block(const LinearJob* job, const int32_t* q, bool last, char* out) {
#ifdef QLLM_HAS_HALVES
    if constexpr (is_bytes(KIND)) {
        constexpr int digits = digits_of(KIND);
        int32_t spread[BLOCK];
        if (last && job->short_count) spread_short_block(q, job->short_count, spread), q = spread;
        for (int i = 0; i < BLOCK; i += 32) {  // 32 places of the result
            Ints even, odd;
            if (job->interleaved) {
                const int first = i / 64 * QUARTER + i % 64 / 2;
                even = ints_load(q + first), odd = ints_load(q + first + 64);
            } else {
                even = ints_load(q + i), odd = ints_load(q + i + 16);
            }
            for (int d = digits - 1; d >= 0; d--) {
                char* place = out + d * BLOCK + i;
                if (job->interleaved)
                    ints_low_bytes_in_turns(place, even, odd);
                else
                    ints_low_bytes(place, even), ints_low_bytes(place + 16, odd);
                even = ints_next_digit(even), odd = ints_next_digit(odd);
            }
        }
        return;
    }
#endif
    (void)job, (void)last;
    for (int i = 0; i < BLOCK; i += 16) {
        Ints v = ints_load(q + i);
        if (KIND == WORDS_2) {
            const Ints high = ints_high_word(v);
            ints_to_words((int16_t*)out + BLOCK + i, ints_minus(v, ints_times_65536(high)));
            v = high;
        }
        ints_to_words((int16_t*)out + i, v);
    }
}

// q of a unit summed, as the kind adds its digits up: everything, or the high digits and the low one.
static void sums_of_unit(const int32_t* q, int count, int kind, int32_t sums[2]) {
    Ints all = ints_zero(), low = ints_zero();
    for (int i = 0; i < count; i += 16) {
        const Ints v = ints_load(q + i);
        all = ints_plus(all, v);
        if (kind == BYTES_3) low = ints_plus(low, ints_low_digit(v));
        if (kind == WORDS_2) low = ints_plus(low, ints_minus(v, ints_times_65536(ints_high_word(v))));
    }
    sums[1] = ints_sum(low);
    sums[0] = (ints_sum(all) - sums[1]) >> (kind == WORDS_2 ? 16 : kind == BYTES_3 ? 8 : 0);
}

static void prepare_rows(const LinearJob* job, int64_t first, int64_t last, char* space) {
    const Prepared* p = &job->rows;
    const int per_block = QUARTERS / job->quarters, unit = job->quarters * QUARTER, kind = job->kind, sums = sums_of(kind);
    for (int64_t t = first; t < last; t++) {
        const Token token = integers_of(job, t, space);
        for (int64_t b = 0; b < p->blocks; b++) {
            const int32_t* q = token.numbers + b * BLOCK;
            const bool last = b == p->blocks - 1;
            char* out = p->numbers + (t * p->blocks + b) * bytes_per_block(kind);
            switch (kind) {
                case WORDS_1: digits_of_block<WORDS_1>(job, q, last, out); break;
                case WORDS_2: digits_of_block<WORDS_2>(job, q, last, out); break;
                case BYTES_1: digits_of_block<BYTES_1>(job, q, last, out); break;
                case BYTES_2: digits_of_block<BYTES_2>(job, q, last, out); break;
                default: digits_of_block<BYTES_3>(job, q, last, out);
            }
        }
        for (int64_t u = 0; u < p->units; u++) {
            int32_t sum[2];
            sums_of_unit(token.numbers + u * unit, unit, kind, sum);
            p->unit_scales[t * (p->units + 16) + u] = token.scale[u / per_block];
            for (int s = 0; s < sums; s++) p->unit_sums[(t * sums + s) * (p->units + 16) + u] = sum[s];
        }
    }
}

static void prepare_columns(const LinearJob* job, int64_t first, int64_t last, char* space) {
    const Columns* c = &job->columns;
    const int digits = job->digits, unit = job->quarters * QUARTER;
    for (int64_t t = first; t < last; t++) {
        const int64_t group = t / LANES, lane = t % LANES;
        if (t >= c->tokens) {  // the last lanes of the last group
            for (int64_t b = 0; b < c->blocks; b++) {
                c->scales[(b * c->groups + group) * LANES + lane] = 0.0f;
                uint32_t* to = (uint32_t*)c->numbers + (b * c->groups + group) * digits * COLUMN_VECTORS * LANES + lane;
                for (int i = 0; i < digits * COLUMN_VECTORS; i++) to[i * LANES] = 0;
            }
#ifdef QLLM_HAS_BYTES
            c->zeros[t] = 0.0f;
            for (int64_t u = 0; u < c->units; u++) c->unit_sums[(u * c->groups + group) * LANES + lane] = 0.0f;
#endif
            continue;
        }
        const Token token = integers_of(job, t, space);
        for (int64_t b = 0; b < c->blocks; b++) {
            c->scales[(b * c->groups + group) * LANES + lane] = token.scale[b];
            const int32_t* q = token.numbers + b * BLOCK;
            uint32_t* to = (uint32_t*)c->numbers + (b * c->groups + group) * digits * COLUMN_VECTORS * LANES + lane;
#ifdef QLLM_HAS_HALVES
            int32_t spread[BLOCK];
            if (job->short_count && b == c->blocks - 1) spread_short_block(q, job->short_count, spread), q = spread;
#endif
#ifdef QLLM_HAS_BYTES
            const int32_t shift = digits == 1 ? token.zero_point : digits == 2 ? 1 << 15 : 1 << 23;
            alignas(64) uint8_t bytes[3][BLOCK];
            for (int i = 0; i < BLOCK; i += 32) {
                const int first = job->interleaved ? i / 64 * QUARTER + i % 64 / 2 : i;
                Ints even = ints_plus(ints_load(q + first), ints_all(shift));
                Ints odd = ints_plus(ints_load(q + first + (job->interleaved ? 64 : 16)), ints_all(shift));
                for (int d = digits - 1; d >= 0; d--) {
#ifdef QLLM_HAS_HALVES
                    if (job->interleaved) ints_low_bytes_in_turns(bytes[d] + i, even, odd);
#endif
                    if (!job->interleaved) ints_low_bytes(bytes[d] + i, even), ints_low_bytes(bytes[d] + i + 16, odd);
                    even = ints_shift_right_8(even), odd = ints_shift_right_8(odd);
                }
            }
            for (int d = 0; d < digits; d++)
                for (int i = 0; i < COLUMN_VECTORS; i++, to += LANES) memcpy(to, bytes[d] + 4 * i, 4);
#else
            for (int i = 0; i < COLUMN_VECTORS; i++) {
                const uint16_t low0 = (uint16_t)q[2 * i], low1 = (uint16_t)q[2 * i + 1];
                if (digits == 2) {
                    const uint16_t high0 = (uint16_t)((q[2 * i] + 32768) >> 16), high1 = (uint16_t)((q[2 * i + 1] + 32768) >> 16);
                    to[i * LANES] = high0 | (uint32_t)high1 << 16;
                }
                to[(i + (digits - 1) * COLUMN_VECTORS) * LANES] = low0 | (uint32_t)low1 << 16;
            }
#endif
        }
#ifdef QLLM_HAS_BYTES
        c->zeros[t] = (float)token.zero_point;
        for (int64_t u = 0; u < c->units; u++) {
            int32_t sum[2];
            sums_of_unit(token.numbers + u * unit, unit, BYTES_1, sum);
            c->unit_sums[(u * c->groups + group) * LANES + lane] = (float)sum[0];
        }
#else
        (void)unit;
#endif
    }
}

static void prepare_part(void* data, int thread, int threads) {
    const LinearJob* job = (const LinearJob*)data;
    const int64_t tokens = job->tiles ? job->columns.groups * LANES : job->x->tokens;
    const int64_t first = tokens * thread / threads, last = tokens * (thread + 1) / threads;
    char* space = job->space + thread * job->space_size;
    if (job->tiles)
        prepare_columns(job, first, last, space);
    else
        prepare_rows(job, first, last, space);
}

static void multiply_part(void* data, int thread, int threads) {
    const LinearJob* job = (const LinearJob*)data;
    int64_t first = job->steps * thread / threads, last = job->steps * (thread + 1) / threads;
    for (int m = 0; m < job->count && last > 0; m++) {
        const qllm_matrix* w = job->weights + m;
        const int64_t steps = (w->rows + job->step_rows - 1) / job->step_rows;
        const int64_t begin = (first > 0 ? first : 0) * job->step_rows;
        int64_t end = (last < steps ? last : steps) * job->step_rows;
        if (end > w->rows) end = w->rows;
        first -= steps, last -= steps;
        if (begin >= end) continue;
        const void* bias = job->bias ? job->bias[m] : nullptr;
        if (job->tiles) {
            char* space = job->space + thread * job->space_size;
            TilesJob part = {w, &job->columns, bias, job->y[m], job->x->type, job->interleaved, job->short_block, job->registers, (Panel*)space, (float*)(space + sizeof(Panel))};
            tiles_kernel(w->bits, job->quarters, job->digits)(&part, begin, end);
        } else {
            RowsJob part = {w, &job->rows, bias, job->y[m], job->x->type, job->short_block};
            rows_kernel(w->bits, job->quarters, job->kind)(&part, begin, end);
        }
    }
}

static int64_t aligned(int64_t size) { return (size + 63) / 64 * 64; }

// Which digits the tokens are cut into. Quantized ones without a zero point, or of 7 bits, fit one signed byte.
static void choose_digits(LinearJob* job) {
    const qllm_vectors* x = job->x;
    const bool wide = !x->bits && x->type == QLLM_FLOAT32;
#ifdef QLLM_HAS_BYTES
    job->digits = x->bits ? 1 : wide ? 3 : 2;
#else
    job->digits = wide ? 2 : 1;
#endif
    job->kind = wide ? WORDS_2 : WORDS_1;
#ifdef QLLM_HAS_HALVES
    if (job->quarters == QUARTERS)
        job->kind = wide ? BYTES_3 : x->bits && (x->symmetric || x->bits < 8) ? BYTES_1 : BYTES_2;
    job->interleaved = job->quarters == QUARTERS && job->weights->bits != 8;
#endif
}

static int linear(const Runtime* runtime, const qllm_matrix* weights, int count, const qllm_vectors* x, const void* const* bias,
                  void* const* y, int threads) {
    if (count < 1 || x->tokens < 1) return QLLM_OK;
    for (int m = 1; m < count; m++)  // bytes of 8 bits are in another order: such matrices cannot share their tokens
        if ((weights[m].bits == 8) != (weights[0].bits == 8)) {
            for (int i = 0; i < count; i++) {
                const int status = linear(runtime, weights + i, 1, x, bias ? bias + i : nullptr, y + i, threads);
                if (status) return status;
            }
            return QLLM_OK;
        }
    LinearJob job;
    memset(&job, 0, sizeof job);
    job.weights = weights, job.count = count, job.x = x, job.bias = bias, job.y = y;
    job.registers = runtime->tiles, job.quarters = QUARTERS;
    int64_t rows = 0;
    for (int m = 0; m < count; m++) {
        const int quarters = unit_quarters(weights + m);
        if (quarters < job.quarters) job.quarters = quarters;
        rows += weights[m].rows;
    }
    job.tiles = x->tokens >= TILES_FROM;
    choose_digits(&job);
    const int unit = job.quarters * QUARTER;
    job.length = weights->length;
#ifdef QLLM_HAS_HALVES
    const int rest = (int)(job.length % BLOCK);
    const ShortBlock short_block(rest);
    job.short_block = &short_block;
    if (job.interleaved && rest && planes_match(rest)) job.short_count = rest;
#endif
    job.blocks = (job.length + BLOCK - 1) / BLOCK, job.units = (job.length + unit - 1) / unit;
    // below this much work a second thread costs more than it brings
    if (rows * job.length * (x->tokens < 8 ? x->tokens : 8) < 1 << 17) threads = 1;
    job.step_rows = job.tiles ? (int)PANEL : 8 * ROWS;
    for (int m = 0; m < count; m++) job.steps += (weights[m].rows + job.step_rows - 1) / job.step_rows;
    if (threads > job.steps) threads = (int)job.steps;
    if (threads < 1) threads = 1;

    int64_t sizes[4] = {0, 0, 0, 0};
    if (job.tiles) {
        Columns* c = &job.columns;
        c->tokens = x->tokens, c->groups = (x->tokens + LANES - 1) / LANES, c->blocks = job.blocks, c->units = job.units;
        const int64_t padded = c->groups * LANES;
        sizes[0] = aligned(padded * job.blocks * job.digits * COLUMN_VECTORS * 4);
        sizes[1] = aligned(padded * job.blocks * 4);
        sizes[2] = aligned(padded * job.units * 4);
        sizes[3] = aligned(padded * 4);
        job.space_size = aligned(sizeof(Panel) + c->groups * PANEL * LANES * 4);
    } else {
        job.rows.tokens = x->tokens, job.rows.blocks = job.blocks, job.rows.units = job.units;
        sizes[0] = aligned(x->tokens * job.blocks * bytes_per_block(job.kind));
        sizes[1] = aligned(x->tokens * sums_of(job.kind) * (job.units + 16) * 4);
        sizes[2] = aligned(x->tokens * (job.units + 16) * 4);
    }
    if (job.space_size < aligned(prepare_space(job.blocks))) job.space_size = aligned(prepare_space(job.blocks));
    char* memory = (char*)runtime->scratch(sizes[0] + sizes[1] + sizes[2] + sizes[3] + threads * job.space_size);
    if (!memory) return QLLM_NO_MEMORY;
    char *part1 = memory + sizes[0], *part2 = part1 + sizes[1], *part3 = part2 + sizes[2];
    job.space = part3 + sizes[3];
    if (job.tiles) {
        job.columns.numbers = memory;
        job.columns.scales = (float*)part1;
        job.columns.unit_sums = (float*)part2;
        job.columns.zeros = (float*)part3;
    } else {
        job.rows.numbers = memory;
        job.rows.unit_sums = (int32_t*)part1;
        job.rows.unit_scales = (float*)part2;
    }
    runtime->parallel(x->tokens * job.length < 1 << 15 ? 1 : threads, prepare_part, &job);
    runtime->parallel(threads, multiply_part, &job);
    return QLLM_OK;
}

}  // namespace QLLM_NAMESPACE
