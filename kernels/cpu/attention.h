// Attention straight on packed keys and values.
//
// Work is a task per batch, key head and stretch of tokens. A task goes through its tokens in spans of 64:
//
//   keys    64 rows of codes -> bytes -> turned, so that a vector holds four codes of 16 tokens; integer products with
//           the queries (16 bits each); scales and zero points once per token
//   scores  soft cap, mask, running maximum and sum, in float32
//   values  64 rows of codes -> bytes -> interleaved, so that a vector holds one code of four tokens 16 times; integer
//           products with the weights (16 bits each, the scales of the values folded in, one step size per span)
//
// So each row is read once for all queries of its head, and nothing of the size of the history is written. Tasks of one
// head are joined by their maxima. float32 takes two numbers of 15 bits for each of 16: the error is below 2^-28.
#pragma once

#include "attention_products.h"
#include "level.h"

namespace QLLM_NAMESPACE {

struct Attention {
    const qllm_attention* request;
    const qllm_kv* keys;
    const qllm_kv* values;
    const Shape* key_shape;
    const Shape* value_shape;
    int64_t queries, parts, digits, tasks, stretch, workspace;  // queries of a key head; stretches of tokens per head
    uint8_t* workspaces;
    float* partial;  // per task: maxima [queries], sums [queries], weighted values [queries][acc_step]
    int64_t partial_size, acc_step;  // per query: sums of codes, then a sum of zero points per group
    int64_t next;
};

// Where a task keeps its things.
struct Workspace {
    uint8_t* numbers;    // of the queries: [queries][digits][padded length of keys][2]
    float* steps;        // their scale, with that of the scores: [queries]
    int32_t* sums;       // [queries][digits][segments of keys]
    float* scores;       // [queries][SPAN]
    uint8_t* weights;    // [queries][digits][SPAN][2]
    float* weight_steps; // [queries]
    int32_t* weight_sums;  // [queries][digits]
    Span span;
    float* line;  // one query or output in the order of codes
};

static int64_t workspace_size(int64_t queries, int64_t digits, const Shape* keys, const Shape* values, uint8_t* base, Workspace* w) {
    const int64_t padded = keys->padded > values->padded ? keys->padded : values->padded;
    const int64_t segments = keys->count > values->count ? keys->count : values->count;
    int64_t used = 0;
    const auto take = [&](int64_t size) __attribute__((always_inline)) {
        uint8_t* p = base + used;
        used += (size + 127) / 64 * 64;
        return p;
    };
    w->numbers = take(queries * digits * keys->padded * 2);
    w->steps = (float*)take(queries * 4);
    w->sums = (int32_t*)take(queries * digits * keys->count * 4);
    w->scores = (float*)take(queries * SPAN * 4);
    w->weights = take(queries * digits * SPAN * 2);
    w->weight_steps = (float*)take(queries * 4);
    w->weight_sums = (int32_t*)take(queries * digits * 4);
    w->span.bytes = take(SPAN * padded);
    w->span.panel = take(SPAN * padded);
    w->span.scale = (float*)take(segments * SPAN * 4);
    w->span.zero = (int32_t*)take(segments * SPAN * 4);
    w->span.copy = take(SPAN * (keys->row_bytes > values->row_bytes ? keys->row_bytes : values->row_bytes) + 64);
    w->line = (float*)take(padded * 4);
    return used;
}

// Scores are kept in units of log 2, so that weights are powers of two.
static const float LOG2E = 1.44269504f;

QLLM_INLINE Floats magnitude_of(Floats v) { return floats_max(v, floats_fnma(v, floats_all(1.0f), floats_zero())); }

// Numbers of 16 bits, or two of 15, of 16 floats.
QLLM_INLINE Ints number_of(Floats v, float inverse) { return ints_round(floats_mul(v, floats_all(inverse))); }
QLLM_INLINE Ints upper_part(Ints v) { return ints_high_word(ints_left<1>(v)); }
QLLM_INLINE Ints lower_part(Ints v, Ints upper) { return ints_minus(v, ints_left<15>(upper)); }

static const float PART = 32768.0f;

QLLM_INLINE float factor_of(int64_t digit, int64_t digits) { return digit + 1 < digits ? PART : 1.0f; }

QLLM_INLINE float reach_of(int64_t digits) { return digits == 2 ? QLLM_LARGEST * PART : QLLM_LARGEST; }

QLLM_INLINE int64_t value_size(int type) { return type == QLLM_FLOAT32 ? 4 : 2; }

// The queries of one batch and key head, as integers in the order in which codes come.
static __attribute__((noinline)) void prepare_queries(const Attention* job, int64_t batch, int64_t head, Workspace* w) {
    const qllm_attention* r = job->request;
    const Shape* shape = job->key_shape;
    const int64_t digits = job->digits, size = value_size(r->type), line_bytes = shape->padded * 2;
    for (int64_t m = 0; m < job->queries; m++) {
        const int64_t g = m / r->count, t = m % r->count;
        const char* q = (const char*)r->query +
                        (batch * r->query_strides[0] + (head * r->group + g) * r->query_strides[1] + t * r->query_strides[2]) * size;
        float* natural = (float*)w->span.panel;  // free until the first span
        Floats largest = floats_zero(), finite = floats_zero();
        for (int64_t i = 0; i < shape->length; i += 16) {
            const Floats v = floats_from_memory(q + i * size, r->type, shape->length - i < 16 ? (int)(shape->length - i) : 16);
            largest = floats_max(largest, magnitude_of(v));
            finite = floats_fma(v, floats_zero(), finite);
            floats_store(natural + i, v);
        }
        for (int64_t i = 0; i < shape->padded; i++) w->line[i] = shape->order[i] < 0 ? 0.0f : natural[shape->order[i]];
        const float range = floats_largest(largest), reach = reach_of(digits);
        float inverse = reach / range;
        const bool whole = floats_sum(finite) == 0.0f;
        float step = range / reach * r->scale * (r->softcap != 0.0f || r->part == QLLM_SCORES ? 1.0f : LOG2E);
        if (!whole || !(inverse < 3e38f)) inverse = 0.0f, step = whole ? 0.0f : __builtin_nanf("");
        w->steps[m] = step;
        for (int64_t s = 0; s < shape->count; s++) {
            Ints sum[2] = {ints_zero(), ints_zero()};
            for (int64_t i = shape->segments[s].start; i < shape->segments[s].start + shape->segments[s].padded; i += 16) {
                Ints v = number_of(floats_load(w->line + i), inverse);
                uint8_t* place = w->numbers + m * digits * line_bytes + i * NUMBER_BYTES;
                if (digits == 2) {
                    const Ints upper = upper_part(v), lower = lower_part(v, upper);
                    store_numbers(place + line_bytes, shape->padded, lower);
                    sum[1] = ints_minus(sum[1], lower);
                    v = upper;
                }
                store_numbers(place, shape->padded, v);
                sum[0] = ints_minus(sum[0], v);
            }
            for (int64_t d = 0; d < digits; d++) w->sums[(m * digits + d) * shape->count + s] = -ints_sum(sum[d]);
        }
    }
}

// Whether a mask hides all of `count` keys from a query.
static bool hidden(const void* mask, int type, int64_t count) {
    if (type == QLLM_BOOL) {
        for (int64_t i = 0; i < count; i++)
            if (((const uint8_t*)mask)[i]) return false;
        return true;
    }
    Floats largest = floats_all(-__builtin_inff());
    for (int64_t i = 0; i < count; i += 16) {
        const int n = count - i < 16 ? (int)(count - i) : 16;
        Floats v = floats_from_memory((const char*)mask + i * value_size(type), type, n);
        if (n < 16) return false;
        largest = floats_max(largest, v);
    }
    return !(floats_largest(largest) > -__builtin_inff());
}

QLLM_INLINE const char* mask_of(const Attention* job, int64_t batch, int64_t head, int64_t m, int64_t token) {
    const qllm_attention* r = job->request;
    const int64_t g = m / r->count, t = m % r->count;
    const int64_t at = batch * r->mask_strides[0] + (head * r->group + g) * r->mask_strides[1] + t * r->mask_strides[2] + token;
    return (const char*)r->mask + at * (r->mask_type == QLLM_BOOL ? 1 : value_size(r->mask_type));
}

// cap tanh(s / cap) = s' (1 - e) / (1 + e) with e = exp(-2 |s| / cap) and s' = cap or -cap
QLLM_INLINE Floats capped(Floats s, float cap) {
    const Floats one = floats_all(1.0f), opposite = floats_fnma(s, one, floats_zero());
    const Floats magnitude = floats_max(s, opposite);
    const Floats e = floats_exp2(floats_mul(magnitude, floats_all(-2.0f * LOG2E / cap)));
    const Floats t = floats_mul(floats_all(cap), floats_div(floats_fnma(e, one, one), floats_add(one, e)));
    const Floats tiny = floats_all(1e-30f);  // the sign of s, and 0 for 0
    return floats_mul(t, floats_div(s, floats_add(magnitude, tiny)));
}

// Adds a mask: numbers, or -infinity where a flag is 0.
static void add_mask(const char* mask, int type, int64_t count, float* scores) {
    for (int64_t i = 0; i < count; i += 16) {
        const int n = count - i < 16 ? (int)(count - i) : 16;
        Floats s = floats_load(scores + i);
        if (type == QLLM_BOOL) {
            alignas(64) int32_t flags[16];
            ints_store(flags, ints_from_bytes((const uint8_t*)mask + i, n));
            for (int j = 0; j < 16; j++) flags[j] = flags[j] ? 0 : (int32_t)0xFF800000;  // 0 or -infinity
            s = floats_add(s, floats_of_bits(ints_load(flags)));
        } else {
            s = floats_fma(floats_from_memory(mask + i * value_size(type), type, n), floats_all(LOG2E), s);
        }
        floats_store(scores + i, s);
    }
}

// Scores of a span -> weights in their place, the running maximum and sum brought up to date.
static __attribute__((noinline)) void soft_max(const Attention* job, int64_t batch, int64_t head, int64_t m, int64_t token,
                                               int64_t count, float* scores, float* maximum, float* sum, float* acc) {
    enum { VECTORS = SPAN / 16 };
    const qllm_attention* r = job->request;
    const float infinity = __builtin_inff();
    int64_t seen = count;
    if (r->causal) {
        const int64_t last = m % r->count + 1 - token;
        seen = last < 0 ? 0 : last < count ? last : count;
    }
    if (r->softcap != 0.0f)
        for (int i = 0; i < SPAN; i += 16) floats_store(scores + i, floats_mul(capped(floats_load(scores + i), r->softcap), floats_all(LOG2E)));
    if (r->mask) add_mask(mask_of(job, batch, head, m, token), r->mask_type, count, scores);
    for (int64_t i = seen; i < SPAN; i++) scores[i] = -infinity;
    Floats s[VECTORS], largest = floats_all(-infinity), total = floats_zero();
    for (int i = 0; i < VECTORS; i++) {
        s[i] = floats_load(scores + 16 * i);
        largest = floats_max(largest, s[i]);
    }
    const float here = floats_largest(largest);
    if (here > *maximum) {
        if (*maximum > -infinity) {
            alignas(64) float factor[16];
            floats_store(factor, floats_exp2(floats_all(*maximum - here)));
            *sum *= factor[0];
            for (int64_t i = 0; i < job->acc_step; i += 16) floats_store(acc + i, floats_mul(floats_load(acc + i), floats_all(factor[0])));
        }
        *maximum = here;
    }
    // where nothing is seen yet, weights are 0: or no numbers, where scores are not
    const Floats shift = floats_all(*maximum > -infinity ? -*maximum : 0.0f);
    for (int i = 0; i < VECTORS; i++) {
        const Floats p = floats_exp2(floats_add(s[i], shift));
        total = floats_add(total, p);
        floats_store(scores + 16 * i, p);
    }
    *sum += floats_sum(total);
}

// Weights times the scales of the values, as integers, and the zero points' part of what they give.
static __attribute__((noinline)) void prepare_weights(const Attention* job, int64_t segment, int64_t group, Workspace* w, float* acc) {
    enum { VECTORS = SPAN / 16 };
    const int64_t digits = job->digits;
    const float* scale = w->span.scale + segment * SPAN;
    const int32_t* zero = w->span.zero + segment * SPAN;
    const float reach = reach_of(digits);
    for (int64_t m = 0; m < job->queries; m++, acc += job->acc_step) {
        Floats v[VECTORS], largest = floats_zero();
        for (int i = 0; i < VECTORS; i++) {
            v[i] = floats_mul(floats_load(w->scores + m * SPAN + 16 * i), floats_load(scale + 16 * i));
            largest = floats_max(largest, magnitude_of(v[i]));  // weights from elsewhere may be negative
        }
        const float range = floats_largest(largest);
        float inverse = reach / range, step = range / reach;
        if (!(inverse < 3e38f)) inverse = step = 0.0f;
        w->weight_steps[m] = step;
        uint8_t* place = w->weights + m * digits * SPAN * 2;
        if (digits == 1) {  // a scale that is not finite is not finite in the sum
            Floats sum = floats_zero();
            for (int i = 0; i < VECTORS; i++) {
                const Floats rounded = floats_round(floats_mul(v[i], floats_all(inverse)));
                sum = floats_fma(rounded, floats_from(ints_load(zero + 16 * i)), sum);
                store_numbers(place + 16 * i * NUMBER_BYTES, SPAN, ints_round(rounded));
            }
            w->weight_sums[m] = 0;
            acc[job->value_shape->padded + group] += floats_sum(sum) * step;
            continue;
        }
        Ints upper_sum = ints_zero(), lower_sum = ints_zero();
        Floats finite = floats_zero();
        for (int i = 0; i < VECTORS; i++) {
            const Ints number = number_of(v[i], inverse), upper = upper_part(number), lower = lower_part(number, upper);
            const Ints z = ints_load(zero + 16 * i);
            finite = floats_fma(v[i], floats_zero(), finite);
            store_numbers(place + 16 * i * NUMBER_BYTES, SPAN, upper);
            store_numbers(place + 2 * SPAN + 16 * i * NUMBER_BYTES, SPAN, lower);
            upper_sum = ints_minus(upper_sum, ints_negative_product(upper, z));
            lower_sum = ints_minus(lower_sum, ints_negative_product(lower, z));
        }
        if (floats_sum(finite) != 0.0f) w->weight_steps[m] = __builtin_nanf("");
        w->weight_sums[2 * m] = ints_sum(upper_sum);
        w->weight_sums[2 * m + 1] = ints_sum(lower_sum);
    }
}

// Scores of all queries with a span of keys.
static void score_span(const Attention* job, const uint8_t* rows, int64_t count, bool ends, Workspace* w) {
    const Shape* ks = job->key_shape;
    const int64_t digits = job->digits, queries = job->queries;
    read_span(ks, job->keys, rows, count, ends, true, &w->span);
    memset(w->scores, 0, queries * SPAN * sizeof(float));
    for (int64_t s = 0; s < ks->count; s++) {
        const Segment* segment = ks->segments + s;
        for (int64_t d = 0; d < digits; d++)
            product<true>(w->span.panel + segment->start * SPAN, SPAN / 16,
                          w->numbers + d * ks->padded * 2 + segment->start * NUMBER_BYTES, digits * ks->padded * 2, ks->padded,
                          segment->padded / 4, w->span.zero + s * SPAN, w->sums + d * ks->count + s, digits * ks->count,
                          w->span.scale + s * SPAN, w->steps, factor_of(d, digits), w->scores, SPAN, queries);
    }
}

// Adds a span of values, each with its weight, to what all queries have.
static void add_values(const Attention* job, const uint8_t* rows, int64_t count, bool ends, Workspace* w, float* acc) {
    const Shape* vs = job->value_shape;
    const int64_t digits = job->digits;
    read_span(vs, job->values, rows, count, ends, false, &w->span);
    for (int64_t s = 0; s < vs->count; s++) {
        const Segment* segment = vs->segments + s;
        if (s == 0 || segment->group != segment[-1].group) prepare_weights(job, s, segment->group, w, acc);
        for (int64_t d = 0; d < digits; d++)
            product<false>(w->span.panel + segment->start * SPAN, segment->padded / 16, w->weights + d * 2 * SPAN, digits * 2 * SPAN, SPAN,
                           SPAN / 4, nullptr, w->weight_sums + d, digits, nullptr, w->weight_steps, factor_of(d, digits),
                           acc + segment->start, job->acc_step, job->queries);
    }
}

// Scores to the output, or weights from the query, of one span.
static void write_scores(const Attention* job, int64_t rows_before, int64_t token, int64_t count, const Workspace* w) {
    const qllm_attention* r = job->request;
    const int64_t size = value_size(r->type);
    for (int64_t m = 0; m < job->queries; m++) {
        char* out = (char*)r->out + ((rows_before + m) * r->tokens + token) * size;
        for (int64_t i = 0; i < count; i += 16)
            floats_to_memory(out + i * size, r->type, count - i < 16 ? (int)(count - i) : 16, floats_load(w->scores + m * SPAN + i));
    }
}

static void read_weights(const Attention* job, int64_t batch, int64_t head, int64_t token, int64_t count, Workspace* w) {
    const qllm_attention* r = job->request;
    const int64_t size = value_size(r->type);
    for (int64_t m = 0; m < job->queries; m++) {
        const int64_t g = m / r->count, t = m % r->count;
        const char* p = (const char*)r->query + (batch * r->query_strides[0] + (head * r->group + g) * r->query_strides[1] +
                                                 t * r->query_strides[2] + token) * size;
        for (int64_t i = 0; i < SPAN; i += 16) {
            const int64_t left = count - i;
            const Floats v = left > 0 ? floats_from_memory(p + i * size, r->type, left < 16 ? (int)left : 16) : floats_zero();
            floats_store(w->scores + m * SPAN + i, v);
        }
    }
}

static void attend_stretch(const Attention* job, int64_t task, uint8_t* memory) {
    const qllm_attention* r = job->request;
    const int64_t part = task % job->parts, head = task / job->parts % r->heads, batch = task / job->parts / r->heads;
    const int64_t queries = job->queries;
    const int64_t first = part * job->stretch, last = first + job->stretch < r->tokens ? first + job->stretch : r->tokens;
    float* maxima = job->partial + task * job->partial_size;
    float *sums = maxima + queries, *acc = sums + queries;
    const bool whole = r->part == QLLM_WHOLE;
    for (int64_t m = 0; m < queries; m++) maxima[m] = whole ? -__builtin_inff() : 0.0f, sums[m] = 0.0f;
    memset(acc, 0, queries * job->acc_step * sizeof(float));
    Workspace w;
    workspace_size(queries, job->digits, job->key_shape, job->value_shape, memory, &w);
    if (r->part != QLLM_VALUES) prepare_queries(job, batch, head, &w);
    const uint8_t* key_rows = (const uint8_t*)job->keys->rows + batch * job->keys->batch_stride + head * job->keys->head_stride;
    const uint8_t* value_rows = (const uint8_t*)job->values->rows + batch * job->values->batch_stride + head * job->values->head_stride;
    for (int64_t token = first; token < last; token += SPAN) {
        const int64_t count = last - token < SPAN ? last - token : (int64_t)SPAN;
        const bool ends = token + count >= r->tokens;
        if (whole && r->mask) {
            bool nothing = true;
            for (int64_t m = 0; nothing && m < queries; m++) nothing = hidden(mask_of(job, batch, head, m, token), r->mask_type, count);
            if (nothing) continue;
        }
        if (whole && r->causal && token >= r->count) break;
        if (r->part != QLLM_VALUES) score_span(job, key_rows + token * job->keys->token_stride, count, ends, &w);
        if (whole)
            for (int64_t m = 0; m < queries; m++)
                soft_max(job, batch, head, m, token, count, w.scores + m * SPAN, maxima + m, sums + m, acc + m * job->acc_step);
        if (r->part == QLLM_SCORES) {
            write_scores(job, (batch * r->heads + head) * queries, token, count, &w);
            continue;
        }
        if (r->part == QLLM_VALUES) read_weights(job, batch, head, token, count, &w);
        add_values(job, value_rows + token * job->values->token_stride, count, ends, &w, acc);
    }
}

static void attend_thread(void* data, int thread, int) {
    Attention* job = (Attention*)data;
    for (int64_t task; (task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->tasks;)
        attend_stretch(job, task, job->workspaces + thread * job->workspace);
}

// The stretches of one query joined, and written.
static void join_query(const Attention* job, int64_t row, float* line) {
    const qllm_attention* r = job->request;
    const Shape* vs = job->value_shape;
    const int64_t head = row / job->queries, m = row % job->queries;  // of batch and key head
    const float infinity = __builtin_inff();
    float maximum = -infinity;
    const float* partial = job->partial + head * job->parts * job->partial_size;
    for (int64_t part = 0; part < job->parts; part++) {
        const float here = partial[part * job->partial_size + m];
        maximum = here > maximum ? here : maximum;
    }
    float sum = 0.0f;
    if (r->sinks) {
        const float sink = LOG2E * r->sinks[head % r->heads * r->group + m / r->count];
        maximum = sink > maximum ? sink : maximum;
        sum = __builtin_exp2f(sink - maximum);
    }
    memset(line, 0, job->acc_step * sizeof(float));
    for (int64_t part = 0; part < job->parts; part++) {
        const float* p = partial + part * job->partial_size;
        const float factor = p[m] > -infinity ? __builtin_exp2f(p[m] - maximum) : 1.0f;  // what saw nothing is 0, or no number
        sum += factor * p[job->queries + m];
        const float* acc = p + 2 * job->queries + m * job->acc_step;
        for (int64_t i = 0; i < job->acc_step; i += 16) floats_store(line + i, floats_fma(floats_load(acc + i), floats_all(factor), floats_load(line + i)));
    }
    float* natural = line + job->acc_step;
    if (r->part == QLLM_VALUES) sum = 1.0f;
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;  // a query that sees nothing gets 0, as in torch
    for (int64_t s = 0; s < vs->count; s++) {
        const Segment* segment = vs->segments + s;
        const float minus = line[vs->padded + segment->group];
        for (int64_t i = segment->start; i < segment->start + segment->padded; i++)
            if (vs->order[i] >= 0) natural[vs->order[i]] = (line[interleaved_place(i)] - minus) * inverse;
    }
    char* out = (char*)r->out + row * vs->length * value_size(r->type);
    for (int64_t i = 0; i < vs->length; i += 16)
        floats_to_memory(out + i * value_size(r->type), r->type, vs->length - i < 16 ? (int)(vs->length - i) : 16, floats_load(natural + i));
}

static int attend(const Runtime* runtime, const qllm_attention* request, const qllm_kv* keys, const qllm_kv* values, int threads) {
    Shape key_shape, value_shape;
    if (!shape_of(keys, &key_shape) || !shape_of(values, &value_shape)) return QLLM_BAD_ARGUMENT;
    if (threads < 1) threads = 1;
    Attention job;
    job.request = request, job.keys = keys, job.values = values, job.key_shape = &key_shape, job.value_shape = &value_shape;
    job.queries = request->group * request->count;
    job.digits = request->type == QLLM_FLOAT32 ? 2 : 1;
    const int64_t heads = request->batch * request->heads, spans = (request->tokens + SPAN - 1) / SPAN;
    // enough tasks that no thread waits long for the last, each long enough to be worth its start
    int64_t parts = (4 * threads + heads - 1) / heads;
    if (threads == 1) parts = 1;
    if (parts > (spans + 3) / 4) parts = (spans + 3) / 4;
    if (parts < 1) parts = 1;
    job.stretch = (spans + parts - 1) / parts * SPAN;
    job.parts = spans ? (spans * SPAN + job.stretch - 1) / job.stretch : 1;
    job.tasks = heads * job.parts;
    job.acc_step = value_shape.padded + (value_shape.groups + 15) / 16 * 16;
    job.partial_size = job.queries * (2 + job.acc_step) + 16;
    Workspace measured;
    job.workspace = workspace_size(job.queries, job.digits, &key_shape, &value_shape, nullptr, &measured);
    const int64_t partial_bytes = (job.tasks * job.partial_size * 4 + 63) / 64 * 64, lines = 2 * job.acc_step * 4 + 64;
    uint8_t* memory = (uint8_t*)runtime->scratch(partial_bytes + threads * job.workspace + lines);
    if (!memory) return QLLM_NO_MEMORY;
    job.partial = (float*)memory;
    job.workspaces = memory + partial_bytes;
    job.next = 0;
    runtime->parallel(threads, attend_thread, &job);
    float* line = (float*)(job.workspaces + threads * job.workspace);
    for (int64_t row = 0; request->part != QLLM_SCORES && row < heads * job.queries; row++) join_query(&job, row, line);
    return QLLM_OK;
}

}  // namespace QLLM_NAMESPACE
