// Arrays and loops: a pair is the first and the second half of 32 numbers.
#pragma once

namespace QLLM_NAMESPACE {

#define QLLM_EACH(n) for (int i = 0; i < n; i++)

template <int TYPE>
QLLM_INLINE void pair_load(const void* p, Floats* a, Floats* b) {
    *a = floats_from_memory(p, TYPE, 16);
    *b = floats_from_memory((const char*)p + 16 * (TYPE == QLLM_FLOAT32 ? 4 : 2), TYPE, 16);
}
template <int TYPE>
QLLM_INLINE Words pair_words(Ints a, Ints b) {
    Words r;
    QLLM_EACH(16) r[i] = (int16_t)a[i];
    QLLM_EACH(16) r[16 + i] = (int16_t)b[i];
    return r;
}
template <int TYPE>
QLLM_INLINE void pair_codes(Words w, Floats* a, Floats* b) {
    QLLM_EACH(16) a[0][i] = (float)(uint16_t)w[i];
    QLLM_EACH(16) b[0][i] = (float)(uint16_t)w[16 + i];
}
template <int TYPE>
QLLM_INLINE void pair_store(void* p, Floats a, Floats b) {
    floats_to_memory(p, TYPE, 16, a);
    floats_to_memory((char*)p + 16 * (TYPE == QLLM_FLOAT32 ? 4 : 2), TYPE, 16, b);
}

QLLM_INLINE Words words_plus(Words a, Words b) {
    QLLM_EACH(32) a[i] = (int16_t)(a[i] + b[i]);
    return a;
}
QLLM_INLINE Words words_plus_saturating(Words a, Words b) {
    QLLM_EACH(32) {
        const int sum = a[i] + b[i];
        a[i] = (int16_t)(sum > INT16_MAX ? INT16_MAX : sum < INT16_MIN ? INT16_MIN : sum);
    }
    return a;
}
QLLM_INLINE Words words_minus_unsigned(Words a, Words b) {
    QLLM_EACH(32) {
        const int difference = (uint16_t)a[i] - (uint16_t)b[i];
        a[i] = (int16_t)(difference < 0 ? 0 : difference);
    }
    return a;
}
QLLM_INLINE Words words_most(Words a, Words b) {
    QLLM_EACH(32) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
QLLM_INLINE Words words_most_unsigned(Words a, Words b) {
    QLLM_EACH(32) a[i] = (uint16_t)a[i] > (uint16_t)b[i] ? a[i] : b[i];
    return a;
}
QLLM_INLINE Ints ints_most(Ints a, Ints b) {
    QLLM_EACH(16) a[i] = a[i] > b[i] ? a[i] : b[i];
    return a;
}
QLLM_INLINE Ints ints_most_unsigned(Ints a, Ints b) {
    QLLM_EACH(16) a[i] = (uint32_t)a[i] > (uint32_t)b[i] ? a[i] : b[i];
    return a;
}
QLLM_INLINE uint16_t words_largest(Words v) {
    uint16_t most = 0;
    QLLM_EACH(32) most = (uint16_t)v[i] > most ? (uint16_t)v[i] : most;
    return most;
}
QLLM_INLINE uint32_t ints_largest(Ints v) {
    uint32_t most = 0;
    QLLM_EACH(16) most = (uint32_t)v[i] > most ? (uint32_t)v[i] : most;
    return most;
}
QLLM_INLINE Words words_first(const void* p, int n) {
    Words r = words_zero();
    memcpy(&r, p, 2 * n);
    return r;
}
QLLM_INLINE Ints ints_first_of(const void* p, int n) {
    Ints r = ints_zero();
    memcpy(&r, p, 4 * n);
    return r;
}

template <int N>
QLLM_INLINE Words words_left_by(Words v) {
    return words_left(v, N);
}
template <int N>
QLLM_INLINE Words words_right_by(Words v) {
    QLLM_EACH(32) v[i] = (int16_t)((uint16_t)v[i] >> N);
    return v;
}
QLLM_INLINE Words words_and(Words v, int16_t mask) {
    QLLM_EACH(32) v[i] = (int16_t)(v[i] & mask);
    return v;
}

QLLM_INLINE void stream_line(void* p, Words v) { store_words(p, v); }
QLLM_INLINE void stream_end() {}

QLLM_INLINE void store_bytes(uint8_t* p, Words v) { QLLM_EACH(32) p[i] = (uint8_t)v[i]; }
QLLM_INLINE void store_fold2(uint8_t* p, Words v) {
    QLLM_EACH(16) v[i] = (int16_t)(v[i] | v[16 + i] << 2);
    memcpy(p, &v, 32);
}
QLLM_INLINE void store_fold1(uint8_t* p, Words v) {
    QLLM_EACH(8) v[i] = (int16_t)(v[i] | v[8 + i] << 1 | v[16 + i] << 2 | v[24 + i] << 3);
    memcpy(p, &v, 16);
}

#undef QLLM_EACH

}  // namespace QLLM_NAMESPACE
