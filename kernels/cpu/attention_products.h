// Integer products of queries or weights with a panel of codes, for attention.
#pragma once

#include "attention_rows.h"

namespace QLLM_NAMESPACE {

// Rows of a tile times vectors of a panel: out[m][16 v ..] += step[m] lane[v] (sum of products - zero).
template <int M, int V, bool KEYS>
QLLM_INLINE void product_tile(const uint8_t* panel, int64_t vector_step, const uint8_t* numbers, int64_t number_step, int64_t plane,
                              int64_t quads, const int32_t* zero, const int32_t* sums, int64_t sum_step, const float* scale,
                              const float* steps, float factor, float* out, int64_t out_step) {
#define EACH_V(F, m) F(m, 0) F(m, 1) F(m, 2) F(m, 3)
#define EACH(F) EACH_V(F, 0) EACH_V(F, 1) EACH_V(F, 2) EACH_V(F, 3)
#define START(m, v)                                                                                         \
    Ints x##m##v = ints_zero(), y##m##v = x##m##v;                                                          \
    if constexpr (m < M && v < V)                                                                           \
        y##m##v = KEYS ? ints_negative_product(ints_load(zero + 16 * v), ints_all(sums[m * sum_step])) : ints_all(-sums[m * sum_step]);
    EACH(START)
#undef START
    for (int64_t i = 0; i < quads; i++) {
        const uint8_t* p = panel + 64 * i;
        const uint8_t* a = numbers + 4 * NUMBER_BYTES * i;
        const Codes c0 = load_codes(p), c1 = load_codes(p + (V > 1) * vector_step);
        const Codes c2 = load_codes(p + (V > 2) * 2 * vector_step), c3 = load_codes(p + (V > 3) * 3 * vector_step);
#define ADD(m, v) \
    if constexpr (m < M && v < V) add_products(x##m##v, y##m##v, c##v, q);
#define ADD_ROW(m)                                                \
    if constexpr (m < M) {                                        \
        const Quads q = load_quads(a + m * number_step, plane); \
        EACH_V(ADD, m)                                            \
    }
        QLLM_4(ADD_ROW)
#undef ADD_ROW
#undef ADD
    }
#define STORE(m, v)                                                                          \
    if constexpr (m < M && v < V) {                                                          \
        Floats step = floats_all(steps[m] * factor);                                         \
        if (KEYS) step = floats_mul(step, floats_load(scale + 16 * v));                      \
        float* place = out + m * out_step + 16 * v;                                          \
        floats_store(place, floats_fma(floats_from(joined(x##m##v, y##m##v)), step, floats_load(place))); \
    }
    EACH(STORE)
#undef STORE
#undef EACH
#undef EACH_V
}

// All queries times all vectors of a panel.
template <bool KEYS>
static __attribute__((noinline)) void product(const uint8_t* panel, int64_t vectors, const uint8_t* numbers, int64_t number_step, int64_t plane, int64_t quads,
                    const int32_t* zero, const int32_t* sums, int64_t sum_step, const float* scale, const float* steps, float factor,
                    float* out, int64_t out_step, int64_t queries) {
    const int64_t vector_step = 64 * quads;
    int64_t m = 0;
#define TILES(M, V)                                                                                                                \
    for (int64_t v = 0; v < vectors; v += V)                                                                                       \
        product_tile<M, V, KEYS>(panel + v * vector_step, vector_step, numbers + m * number_step, number_step, plane, quads,       \
                                 KEYS ? zero + 16 * v : zero, sums + m * sum_step, sum_step, KEYS ? scale + 16 * v : scale, steps + m, \
                                 factor, out + m * out_step + 16 * v, out_step);
#if QLLM_ATTENTION_ROWS == 4
    for (; m + 4 <= queries; m += 4) TILES(4, 2)
    for (; m + 2 <= queries; m += 2) TILES(2, 4)
    for (; m < queries; m++) TILES(1, 4)
#else
    for (; m + 2 <= queries; m += 2) TILES(2, 1)
    for (; m < queries; m++) TILES(1, 2)
#endif
#undef TILES
}

}  // namespace QLLM_NAMESPACE
