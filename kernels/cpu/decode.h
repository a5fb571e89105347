// Packed codes, scales and zero points -> numbers: (code - zero point) scale in float32, rounded to their type.
#pragma once

#include "encode.h"

namespace QLLM_NAMESPACE {

struct DecodeJob {
    const qllm_packed* packed;
    const qllm_numbers* y;
    const Runtime* runtime;
    int64_t rows, groups, group_size;
    int size, scale_size;
    int status;
};

#ifdef QLLM_HAS_TABLE
// What each of 32 codes means in a group, as numbers of 16 bits.
template <int TYPE>
QLLM_INLINE Words meanings(Floats zero, Floats scale) {
    int16_t all[32];
    for (int i = 0; i < 32; i++) all[i] = (int16_t)i;
    Floats a, b;
    pair_codes<TYPE>(load_words(all), &a, &b);
    const Floats one = floats_all(1.0f);
    return pair_pack<TYPE>(floats_mul(floats_fnma(zero, one, a), scale), floats_mul(floats_fnma(zero, one, b), scale));
}
#endif

// Numbers [at, at + count) of a row, 32 at a time: what goes beyond a group is overwritten by the next one. `codes` has 32
// more.
template <int TYPE>
static void numbers_of(const int16_t* codes, int64_t at, int64_t count, const float* scales, const float* zeros, int64_t group_size,
                       int bits, char* y) {
    enum { SIZE = TYPE == QLLM_FLOAT32 ? 4 : 2 };
    const Floats one = floats_all(1.0f);
    int64_t group = at / group_size, left = group_size - at % group_size, i = 0;
    (void)bits;
    while (i < count) {
        const int64_t stop = i + left < count ? i + left : count;
        const Floats scale = floats_all(scales[group]), zero = floats_all(zeros[group]);
#ifdef QLLM_HAS_TABLE
        if (TYPE != QLLM_FLOAT32 && bits <= 5 && stop - i > 32) {
            const Words table = meanings<TYPE>(zero, scale);
            for (; i < stop && count - i >= 32; i += 32) store_words(y + i * SIZE, words_look_up(load_words(codes + i), table));
        }
#endif
        for (; i < stop; i += 32) {
            Floats a, b;
            pair_codes<TYPE>(load_words(codes + i), &a, &b);
            a = floats_mul(floats_fnma(zero, one, a), scale), b = floats_mul(floats_fnma(zero, one, b), scale);
            if (count - i >= 32) {
                pair_store<TYPE>(y + i * SIZE, a, b);
            } else {
                char space[32 * SIZE];
                pair_store<TYPE>(space, a, b);
                memcpy(y + i * SIZE, space, (size_t)(count - i) * SIZE);
            }
        }
        i = stop, group++, left = group_size;
    }
}

typedef void (*NumbersOf)(const int16_t*, int64_t, int64_t, const float*, const float*, int64_t, int, char*);

static void decode_part(void* data, int part, int parts) {
    static const NumbersOf ALL[] = {numbers_of<QLLM_FLOAT32>, numbers_of<QLLM_BFLOAT16>, numbers_of<QLLM_FLOAT16>};
    DecodeJob* job = (DecodeJob*)data;
    const qllm_packed* packed = job->packed;
    const qllm_numbers* y = job->y;
    const int64_t end = job->rows * (part + 1) / parts, length = y->length, G = job->groups;
    int64_t row = job->rows * part / parts;
    if (row >= end) return;
    float* scale = (float*)job->runtime->scratch((G + 16) * 8);
    if (!scale) {
        __atomic_store_n(&job->status, QLLM_NO_MEMORY, __ATOMIC_RELAXED);
        return;
    }
    float* zero = scale + (G + 15) / 16 * 16;
    const NumbersOf numbers = ALL[y->type];
    const UnpackCodes unpack = unpack_codes_of(packed->bits);
    int16_t codes[CODES_AT_ONCE + BLOCK];
    for (Place place = place_of(y->sizes, row); row < end; row++, advance(&place)) {
        const char* stored = (const char*)packed->scale + offset(&place, packed->scale_strides);
        const uint8_t* points = packed->zero_point ? (const uint8_t*)packed->zero_point + offset(&place, packed->zero_strides) : nullptr;
        for (int64_t k = 0; k < G; k += 16) {
            const int n = G - k < 16 ? (int)(G - k) : 16;
            floats_store(scale + k, floats_from_memory(stored + k * job->scale_size, packed->scale_type, n));
            floats_store(zero + k, points ? floats_from(ints_from_bytes(points + k, n)) : floats_all((float)(1 << (packed->bits - 1))));
        }
        const uint8_t* words = (const uint8_t*)packed->words + offset(&place, packed->word_strides);
        char* to = (char*)y->data + offset(&place, y->strides);
        for (int64_t at = 0; at < length; at += CODES_AT_ONCE) {
            const int64_t count = length - at < CODES_AT_ONCE ? length - at : CODES_AT_ONCE;
            unpack(words + at * packed->bits / 8, count, codes);
            numbers(codes, at, count, scale, zero, job->group_size, packed->bits, to + at * job->size);
        }
    }
}

static int decode(const Runtime* runtime, const qllm_packed* packed, const qllm_numbers* y, int threads) {
    DecodeJob job;
    job.packed = packed, job.y = y, job.runtime = runtime, job.status = QLLM_OK;
    job.rows = y->sizes[0] * y->sizes[1] * y->sizes[2];
    job.group_size = packed->group_size > 0 && packed->group_size < y->length ? packed->group_size : y->length;
    job.groups = (y->length + job.group_size - 1) / job.group_size;
    job.size = y->type == QLLM_FLOAT32 ? 4 : 2;
    job.scale_size = packed->scale_type == QLLM_FLOAT32 ? 4 : 2;
    const int64_t work = job.rows * y->length / 32768;
    if (threads > work) threads = (int)work;
    runtime->parallel(threads, decode_part, &job);
    return job.status;
}

}  // namespace QLLM_NAMESPACE
