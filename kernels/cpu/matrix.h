// Scales and zero points of one row of a packed matrix, made ready for a stretch of units.
//
// A unit is the stretch of codes whose products are added as integers before a scale is applied: 128 codes, or a group of
// 64 or 32. Groups are multiples of a unit.
#pragma once

#include "activations.h"

namespace QLLM_NAMESPACE {

// Quarters of a block per unit, of those that this level has kernels for. The slower ones have fewer: a small unit serves
// a large group too.
QLLM_INLINE int unit_quarters(const qllm_matrix* w) {
    if ((QLLM_UNITS & 4) && (w->group_size >= w->length || w->group_size % 128 == 0)) return 4;
    return (QLLM_UNITS & 2) && (w->group_size >= w->length || w->group_size % 64 == 0) ? 2 : 1;
}

enum { STRETCH = 64 };  // units whose scales are prepared at a time

// Where the scales of a row's units are.
struct Row {
    const char* scale;
    const uint8_t* zero;  // null: `center` everywhere
    int type, size, center;
    int64_t per_group;  // units per group
};

QLLM_INLINE Row row_of(const qllm_matrix* w, int64_t row, int quarters) {
    Row r;
    r.type = w->scale_type;
    r.size = w->scale_type == QLLM_FLOAT32 ? 4 : 2;
    r.scale = (const char*)w->scale + row * w->scale_stride * r.size;
    r.zero = w->zero_point ? w->zero_point + row * w->zero_stride : nullptr;
    r.center = 1 << (w->bits - 1);
    r.per_group = w->group_size >= w->length ? INT64_MAX : w->group_size / (quarters * QUARTER);
    return r;
}

// scale[0 .. count) and zero[0 .. count) of units first, first + 1, ...; up to 16 more are written.
static __attribute__((noinline)) void read_units(const Row* r, int64_t first, int count, float* scale, int32_t* zero) {
    for (int u = 0; u < count; u += 16) {
        int n = count - u < 16 ? count - u : 16;
        if (r->per_group == 1) {
            floats_store(scale + u, floats_from_memory(r->scale + (first + u) * r->size, r->type, n));
            ints_store(zero + u, r->zero ? ints_from_bytes(r->zero + first + u, n) : ints_all(r->center));
        } else if (r->per_group == INT64_MAX) {
            floats_store(scale + u, floats_all(floats_sum(floats_from_memory(r->scale, r->type, 1))));
            ints_store(zero + u, ints_all(r->zero ? r->zero[0] : r->center));
        } else {
            for (int i = 0; i < n; i++) {
                int64_t group = (first + u + i) / r->per_group;
                scale[u + i] = floats_sum(floats_from_memory(r->scale + group * r->size, r->type, 1));
                zero[u + i] = r->zero ? r->zero[group] : r->center;
            }
        }
    }
}

}  // namespace QLLM_NAMESPACE
