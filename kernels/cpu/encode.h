// Numbers -> packed codes, scales and zero points, in one pass over memory: the arithmetic of qllm_hf/uniform.py, bit for
// bit. Some rows at a time, small enough for the processor's first cache: the range of each group, then scales and zero
// points of all groups at once, then the codes.
//
// The code of x is round(x / scale), and the quotient is a float, rounded itself. Divisions would take longer than memory
// does, so it is had from y = 1 / scale and what that lacks, z = (1 - scale y) y:
//
//   q = x y + x z           within 0.5000002 of the last place of x / scale
//   q + (x - scale q) y     the float nearest to x / scale (Markstein's theorem: y is the float nearest to 1 / scale, q is
//                           next to the quotient, and the remainder is exact)
//
// Where x and scale have 16 bits, a quotient is a half-way case or at least 2^-12 away from one. Then q alone will do, and
// so will x y, rounded to a multiple of 2^-12.
#pragma once

#include "level.h"
#include "pack.h"

namespace QLLM_NAMESPACE {

static const int64_t CODES_AT_ONCE = 1024, ROWS_AT_ONCE = 16, BYTES_AT_ONCE = 16384, BYTES_OF_A_CACHE = 2 << 20;

// What is known of each group of the rows at hand.
struct Groups {
    char *low, *high;  // the ends of the range, in the type of x
    char* stored;      // scales in the type in which they are stored
    uint8_t* zero_point;
    float *scale, *inverse, *rest;                    // y and z above
    float *zero, *first, *last;                       // zero point, and the codes that may be used
    uint32_t *up, *down, *first_pair;                 // what saturates at `last`, and then at `first`; twice, as words
};

struct EncodeJob {
    const qllm_numbers* x;
    const qllm_packed* out;
    const Runtime* runtime;
    int64_t rows, groups, group_size;
    int64_t at_once;  // rows
    bool stream;      // codes are more than the caches hold
    int size, scale_size;
    int status;
};

// A row by its number, and the next one.
struct Place {
    const int64_t* sizes;
    int64_t index[3];
};
QLLM_INLINE Place place_of(const int64_t sizes[3], int64_t row) {
    return {sizes, {row / sizes[2] / sizes[1], row / sizes[2] % sizes[1], row % sizes[2]}};
}
QLLM_INLINE int64_t offset(const Place* p, const int64_t strides[3]) {
    return p->index[0] * strides[0] + p->index[1] * strides[1] + p->index[2] * strides[2];
}
QLLM_INLINE void advance(Place* p) {
    if (++p->index[2] < p->sizes[2]) return;
    p->index[2] = 0;
    if (++p->index[1] < p->sizes[1]) return;
    p->index[1] = 0;
    p->index[0]++;
}

// Bits of the lowest and the highest of n numbers and 0. As integers positive floats are in their order, and negative
// ones, unsigned, in that of their magnitudes. A number that is not finite is one of the two.
template <int TYPE>
static void range_of(const char* p, int64_t n, char* low, char* high) {
    int64_t i = 0;
    if constexpr (TYPE == QLLM_FLOAT32) {
        Ints up = ints_zero(), down = ints_zero();
        for (; i < n; i += 16) {
            const Ints v = n - i >= 16 ? ints_load(p + 4 * i) : ints_first_of(p + 4 * i, (int)(n - i));
            up = ints_most(up, v);
            down = ints_most_unsigned(down, v);
        }
        const uint32_t ends[2] = {ints_largest(down), ints_largest(up)};
        memcpy(low, ends, 4), memcpy(high, ends + 1, 4);
    } else {
        Words up = words_zero(), down = words_zero();
        for (; i + 32 <= n; i += 32) {
            const Words v = load_words(p + 2 * i);
            up = words_most(up, v);
            down = words_most_unsigned(down, v);
        }
        if (i < n) {
            const Words v = words_first(p + 2 * i, (int)(n - i));
            up = words_most(up, v);
            down = words_most_unsigned(down, v);
        }
        const uint16_t ends[2] = {words_largest(down), words_largest(up)};
        memcpy(low, ends, 2), memcpy(high, ends + 1, 2);
    }
}

// Integers of 0 .. 65535 as two equal words each.
QLLM_INLINE void store_twice(uint32_t* p, Ints v) { store_words(p, words_or(words_from(ints_times_65536(v)), words_from(v))); }

// Everything else about `count` groups whose ranges are known. Returns a status, or -1 where scales are so large that
// their inverses are not normal numbers.
static int choose_scales(const Groups* g, int64_t count, const EncodeJob* job) {
    const int type = job->x->type, stored_type = job->out->scale_type, bits = job->out->bits;
    const bool symmetric = !job->out->zero_point;
    const Floats top = floats_all((float)((1 << bits) - 1)), none = floats_zero(), one = floats_all(1.0f);
    const Floats steps = symmetric ? floats_all((float)((1 << (bits - 1)) - 1)) : top;
    Floats finite = none, largest_scale = none;
    for (int64_t i = 0; i < count; i += 16) {
        const int n = count - i < 16 ? (int)(count - i) : 16;
        Floats low = floats_from_memory(g->low + i * job->size, type, n), high = floats_from_memory(g->high + i * job->size, type, n);
        finite = floats_fma(low, none, floats_fma(high, none, finite));
        low = floats_min(low, none);  // without a negative number it is a positive one
        const Floats range = symmetric ? floats_max(high, floats_fnma(low, one, none)) : floats_fnma(low, one, high);
        floats_to_memory(g->stored + i * job->scale_size, stored_type, n, floats_div(floats_max(range, floats_all(1e-5f)), steps));
        // never below 1e-8, but in the lanes after the last group
        const Floats scale = floats_max(floats_from_memory(g->stored + i * job->scale_size, stored_type, n), floats_all(1e-30f));
        largest_scale = floats_max(largest_scale, scale);
        Floats zero = floats_all((float)(1 << (bits - 1)));
        if (!symmetric) {
            zero = floats_fnma(floats_round(floats_div(low, scale)), one, none);
            zero = floats_min(floats_max(zero, none), top);
        }
        Floats first = none, last = top;
        if (stored_type == QLLM_FLOAT16) {  // codes that mean more than the largest float16 are not used
            float reach[16];
            floats_store(reach, floats_div(floats_all(65504.0f), scale));
            for (int k = 0; k < 16; k++) reach[k] = reach[k] < 1024.0f ? (float)(int)reach[k] : 1024.0f;
            first = floats_max(floats_fnma(floats_load(reach), one, zero), none);
            last = floats_min(floats_add(floats_load(reach), zero), top);
        }
        const Floats inverse = floats_div(one, scale);
        floats_store(g->scale + i, scale);
        floats_store(g->inverse + i, inverse);
        floats_store(g->rest + i, floats_mul(floats_fnma(scale, inverse, one), inverse));
        floats_store(g->zero + i, zero), floats_store(g->first + i, first), floats_store(g->last + i, last);
        const Ints zeros = ints_round(zero), firsts = ints_round(first), room = ints_minus(ints_all(INT16_MAX), ints_round(last));
        store_twice(g->up + i, ints_minus(zeros, ints_minus(ints_zero(), room)));
        store_twice(g->down + i, ints_minus(firsts, ints_minus(ints_zero(), room)));
        store_twice(g->first_pair + i, firsts);
        int16_t points[32];
        ints_to_words(points, zeros), ints_to_words(points + 16, zeros);
        store_bytes(g->zero_point + i, load_words(points));  // 16 too many
    }
    if (!(floats_sum(finite) == 0.0f)) return QLLM_NOT_FINITE;
    return floats_largest(largest_scale) < 1e30f ? QLLM_OK : -1;
}

// 32 times the float nearest to x / scale, rounded half to even.
template <int TYPE, int SCALE>
QLLM_INLINE Words rounded_quotients(Floats a, Floats b, Floats scale, Floats inverse, Floats rest) {
#ifdef QLLM_HAS_FMA
    if constexpr (TYPE != QLLM_FLOAT32 && SCALE != QLLM_FLOAT32) {
        if constexpr (TYPE == QLLM_BFLOAT16) {
            (void)scale, (void)rest;
            const Floats steps = floats_all(3072.0f), ones = floats_all(12582912.0f - 3072.0f);
            return pair_low_words<TYPE>(floats_add(floats_fma(a, inverse, steps), ones), floats_add(floats_fma(b, inverse, steps), ones));
        }
        a = floats_fma(a, inverse, floats_mul(a, rest)), b = floats_fma(b, inverse, floats_mul(b, rest));
    } else {
        const Floats qa = floats_fma(a, inverse, floats_mul(a, rest)), qb = floats_fma(b, inverse, floats_mul(b, rest));
        a = floats_fma(floats_fnma(scale, qa, a), inverse, qa), b = floats_fma(floats_fnma(scale, qb, b), inverse, qb);
    }
#else
    (void)inverse, (void)rest;
    a = floats_div(a, scale), b = floats_div(b, scale);
#endif
    return pair_words<TYPE>(ints_round(a), ints_round(b));
}

// Codes of numbers [at, at + count) of a row, 32 at a time: what goes beyond a group is overwritten by the next one. 32
// codes too many may be written. `next` is where the numbers lie that will be wanted soon.
template <int TYPE, int SCALE>
static void fast_codes(const char* x, int64_t at, int64_t count, const Groups* g, int64_t base, int64_t group_size, int16_t* codes,
                           const char* next) {
    enum { SIZE = TYPE == QLLM_FLOAT32 ? 4 : 2 };
    int64_t group = at / group_size, left = group_size - at % group_size, i = 0;
    while (i < count) {
        const int64_t k = base + group, stop = i + left < count ? i + left : count;
        const Floats inverse = floats_all(g->inverse[k]), rest = floats_all(g->rest[k]), scale = floats_all(g->scale[k]);
        const Words up = words_pair(g->up + k), down = words_pair(g->down + k), first = words_pair(g->first_pair + k);
        for (; i < stop; i += 32) {
            const char* p = x + i * SIZE;
            char space[32 * SIZE];
            if (count - i < 32) {
                memset(space, 0, sizeof space);
                memcpy(space, p, (size_t)(count - i) * SIZE);
                p = space;
            }
            __builtin_prefetch(next + i * SIZE, 0, 1);
            if (SIZE == 4) __builtin_prefetch(next + i * SIZE + 64, 0, 1);
            Floats a, b;
            pair_load<TYPE>(p, &a, &b);
            const Words code = rounded_quotients<TYPE, SCALE>(a, b, scale, inverse, rest);
            // two saturating steps: nothing above `last`, nothing below `first`
            const Words kept = words_minus_unsigned(words_plus_saturating(code, up), down);
            store_words(codes + i, SCALE == QLLM_FLOAT16 ? words_plus(kept, first) : kept);
        }
        i = stop, group++, left = group_size;
    }
}

// The same for scales of any size, by division.
static void exact_codes(const char* x, int64_t at, int64_t count, const Groups* g, int64_t base, const EncodeJob* job, int16_t* codes) {
    float scale[32], zero[32], first[32], last[32];
    int64_t group = at / job->group_size, left = job->group_size - at % job->group_size;
    for (int64_t i = 0; i < count; i += 16) {
        const int n = count - i < 16 ? (int)(count - i) : 16;
        for (int j = 0; j < n; j++) {
            if (!left) group++, left = job->group_size;
            left--;
            const int64_t k = base + group;
            scale[j] = g->scale[k], zero[j] = g->zero[k], first[j] = g->first[k], last[j] = g->last[k];
        }
        for (int j = n; j < 16; j++) scale[j] = 1.0f, zero[j] = first[j] = last[j] = 0.0f;
        const Floats v = floats_from_memory(x + i * job->size, job->x->type, n);
        Floats code = floats_add(floats_round(floats_div(v, floats_load(scale))), floats_load(zero));
        code = floats_min(floats_max(code, floats_load(first)), floats_load(last));
        ints_to_words(codes + i, ints_round(code));
    }
}

typedef void (*RangeOf)(const char*, int64_t, char*, char*);
typedef void (*FastCodes)(const char*, int64_t, int64_t, const Groups*, int64_t, int64_t, int16_t*, const char*);

// Copy past the caches: a cache would first read the line from memory.
static void stream(uint8_t* to, const uint8_t* from, int64_t bytes) {
    const int64_t before = -(int64_t)(uintptr_t)to & 63, lines = (bytes - before) / 64 * 64;
    memcpy(to, from, (size_t)before);
    for (int64_t i = before; i < before + lines; i += 64) stream_line(to + i, load_words(from + i));
    memcpy(to + before + lines, from + before + lines, (size_t)(bytes - before - lines));
}

static void encode_row(const EncodeJob* job, const char* x, const char* next, const Groups* g, int64_t base, bool fast, uint8_t* words) {
    static const FastCodes ALL[3][3] = {
        {fast_codes<QLLM_FLOAT32, QLLM_FLOAT32>, fast_codes<QLLM_FLOAT32, QLLM_BFLOAT16>, fast_codes<QLLM_FLOAT32, QLLM_FLOAT16>},
        {fast_codes<QLLM_BFLOAT16, QLLM_FLOAT32>, fast_codes<QLLM_BFLOAT16, QLLM_BFLOAT16>, fast_codes<QLLM_BFLOAT16, QLLM_FLOAT16>},
        {fast_codes<QLLM_FLOAT16, QLLM_FLOAT32>, fast_codes<QLLM_FLOAT16, QLLM_BFLOAT16>, fast_codes<QLLM_FLOAT16, QLLM_FLOAT16>},
    };
    const FastCodes codes_of = ALL[job->x->type][job->out->scale_type];
    const PackCodes pack = pack_codes_of(job->out->bits);
    int16_t codes[CODES_AT_ONCE + 64];
    alignas(64) uint8_t packed[CODES_AT_ONCE];
    const int64_t length = job->x->length;
    for (int64_t at = 0; at < length; at += CODES_AT_ONCE) {
        const int64_t count = length - at < CODES_AT_ONCE ? length - at : CODES_AT_ONCE;
        if (fast)
            codes_of(x + at * job->size, at, count, g, base, job->group_size, codes, next + at * job->size);
        else
            exact_codes(x + at * job->size, at, count, g, base, job, codes);
        memset(codes + count, 0, 64);
        uint8_t* to = words + at * job->out->bits / 8;
        if (job->stream && count == CODES_AT_ONCE) {
            pack(codes, count, packed);
            stream(to, packed, CODES_AT_ONCE * job->out->bits / 8);
        } else {
            pack(codes, count, to);
        }
    }
}

// Room for what `Groups` points to, for `count` groups.
static int64_t groups_bytes(int64_t count) { return (count + 16) * 52 + 64 * 16; }
static Groups groups_in(char* space, int64_t count) {
    const int64_t n = (count + 15) / 16 * 16;
    Groups g;
    float** floats[] = {&g.scale, &g.inverse, &g.rest, &g.zero, &g.first, &g.last};
    for (int i = 0; i < 6; i++, space += 4 * n) *floats[i] = (float*)space;
    uint32_t** words[] = {&g.up, &g.down, &g.first_pair};
    for (int i = 0; i < 3; i++, space += 4 * n) *words[i] = (uint32_t*)space;
    char** bytes[] = {&g.low, &g.high, &g.stored};
    for (int i = 0; i < 3; i++, space += 4 * n) *bytes[i] = space;
    g.zero_point = (uint8_t*)space;
    return g;
}

static void encode_part(void* data, int part, int parts) {
    static const RangeOf RANGES[] = {range_of<QLLM_FLOAT32>, range_of<QLLM_BFLOAT16>, range_of<QLLM_FLOAT16>};
    EncodeJob* job = (EncodeJob*)data;
    const qllm_packed* out = job->out;
    const RangeOf range = RANGES[job->x->type];
    const int64_t end = job->rows * (part + 1) / parts, length = job->x->length, G = job->groups;
    int64_t row = job->rows * part / parts;
    if (row >= end) return;
    char* space = (char*)job->runtime->scratch(groups_bytes(job->at_once * G));
    if (!space) {
        __atomic_store_n(&job->status, QLLM_NO_MEMORY, __ATOMIC_RELAXED);
        return;
    }
    const Groups g = groups_in(space, job->at_once * G);
    const int64_t zero_bytes = G + (out->padded & G);  // a row of the cache ends with a whole word
    Place place = place_of(job->x->sizes, row);
    while (row < end) {
        if (__atomic_load_n(&job->status, __ATOMIC_RELAXED)) return;
        const int count = (int)(end - row < job->at_once ? end - row : job->at_once);
        const char* from[2 * ROWS_AT_ONCE];
        Place at = place;
        for (int r = 0; r < 2 * count; r++) {
            from[r] = row + r < end ? (const char*)job->x->data + offset(&at, job->x->strides) : from[r - 1];
            if (row + r < end) advance(&at);
        }
        for (int r = 0; r < count; r++)
            for (int64_t k = 0; k < G; k++) {
                const int64_t start = k * job->group_size, size = length - start < job->group_size ? length - start : job->group_size;
                range(from[r] + start * job->size, size, g.low + (r * G + k) * job->size, g.high + (r * G + k) * job->size);
            }
        const int status = choose_scales(&g, count * G, job);
        if (status > 0) {
            __atomic_store_n(&job->status, status, __ATOMIC_RELAXED);
            return;
        }
        for (int r = 0; r < count; r++, advance(&place)) {
            encode_row(job, from[r], from[r + count], &g, r * G, status == QLLM_OK, (uint8_t*)out->words + offset(&place, out->word_strides));
            memcpy((char*)out->scale + offset(&place, out->scale_strides), g.stored + r * G * job->scale_size, (size_t)(G * job->scale_size));
            if (!out->zero_point) continue;
            uint8_t* zero = (uint8_t*)out->zero_point + offset(&place, out->zero_strides);
            memcpy(zero, g.zero_point + r * G, (size_t)G);
            if (zero_bytes > G) zero[G] = 0;
        }
        row += count;
    }
    stream_end();
}

static int encode(const Runtime* runtime, const qllm_numbers* x, const qllm_packed* out, int threads) {
    EncodeJob job;
    job.x = x, job.out = out, job.runtime = runtime, job.status = QLLM_OK;
    job.rows = x->sizes[0] * x->sizes[1] * x->sizes[2];
    job.group_size = out->group_size > 0 && out->group_size < x->length ? out->group_size : x->length;
    job.groups = (x->length + job.group_size - 1) / job.group_size;
    job.size = x->type == QLLM_FLOAT32 ? 4 : 2;
    job.scale_size = out->scale_type == QLLM_FLOAT32 ? 4 : 2;
    job.at_once = BYTES_AT_ONCE / (x->length * job.size);
    const int64_t useful = (ROWS_AT_ONCE + job.groups - 1) / job.groups;  // scales are chosen 16 at a time
    if (job.at_once > useful) job.at_once = useful;
    if (job.at_once < 1) job.at_once = 1;
    job.stream = job.rows * x->length * out->bits / 8 > BYTES_OF_A_CACHE;
    const int64_t work = job.rows * x->length / 32768;  // fewer numbers are not worth a thread
    if (threads > work) threads = (int)work;
    runtime->parallel(threads, encode_part, &job);
    return job.status;
}

}  // namespace QLLM_NAMESPACE
