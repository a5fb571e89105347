// What a kernel multiplies codes with: vectors as integers with one scale per block of 128 numbers.
//
//   quantized per token    x = scale (code - zero point), exactly: |q| <= 255
//   bfloat16, float16      x = scale q with |q| <= 127 2^8, two signed bytes: the error is below 2^-15.9 of the block's largest
//   float32                x = scale q with |q| <= 127 2^16, three signed bytes: the error is below 2^-23.9 of it
//
// A block that holds a number which is not finite gets NaN as its scale, so that nothing is hidden.
#pragma once

#include "unpack.h"

namespace QLLM_NAMESPACE {

// One token of `blocks` blocks.
struct Token {
    int32_t* numbers;  // [blocks][128]
    float* scale;      // [blocks]
    int32_t zero_point;
    float token_scale;
};

QLLM_INLINE Floats read(const qllm_vectors* x, int64_t token, int64_t at, int count) {
    int64_t index = token * x->stride + at;
    return floats_from_memory((const char*)x->data + index * (x->type == QLLM_FLOAT32 ? 4 : 2), x->type, count);
}

QLLM_INLINE float rounded_to(float value, int type) {
    if (type == QLLM_FLOAT32) return value;
    float back[16];
    uint16_t bits[16];
    floats_to_memory(bits, type, 1, floats_all(value));
    floats_store(back, floats_from_memory(bits, type, 1));
    return back[0];
}

QLLM_INLINE int at_most_16(int64_t count) { return count < 0 ? 0 : count < 16 ? (int)count : 16; }

// x 0 is 0 for each finite x, and NaN for all others.
QLLM_INLINE bool all_finite(Floats times_zero) { return floats_sum(times_zero) == 0.0f; }

// The scale, zero point and codes of qllm_hf/uniform.py, in its arithmetic: float32, the scale rounded to the type of x.
static void quantize_token(const qllm_vectors* x, int64_t token, int64_t length, Token* out) {
    const int64_t blocks = (length + BLOCK - 1) / BLOCK;
    const float top = (float)((1 << x->bits) - 1);
    Floats low = floats_zero(), high = floats_zero(), finite = floats_zero();
    for (int64_t i = 0; i < length; i += 16) {
        Floats v = read(x, token, i, at_most_16(length - i));
        low = floats_min(low, v);
        high = floats_max(high, v);
        finite = floats_fma(v, floats_zero(), finite);
    }
    float least = floats_least(low), largest = floats_largest(high), scale, zero;
    if (x->symmetric) {
        float range = largest > -least ? largest : -least;
        scale = rounded_to((range > 1e-5f ? range : 1e-5f) / (float)((1 << (x->bits - 1)) - 1), x->type);
        zero = (float)(1 << (x->bits - 1));
    } else {
        float range = largest - least;
        scale = rounded_to((range > 1e-5f ? range : 1e-5f) / top, x->type);
        float rounded[16];
        floats_store(rounded, floats_round(floats_all(-least / scale)));
        zero = rounded[0] < top ? rounded[0] : top;
    }
    float first = 0.0f, last = top;
    if (x->type == QLLM_FLOAT16) {  // codes that mean more than the largest float16 are not used
        float reach = (float)(int64_t)(65504.0f / scale);
        if (zero - reach > first) first = zero - reach;
        if (zero + reach < last) last = zero + reach;
    }
    const bool whole = all_finite(finite);
    for (int64_t at = 0; at < blocks * BLOCK; at += 16) {
        Ints number = ints_zero();
        int count = at_most_16(length - at);
        if (whole && count) {
            Floats code = floats_add(floats_round(floats_div(read(x, token, at, count), floats_all(scale))), floats_all(zero));
            code = floats_min(floats_max(code, floats_all(first)), floats_all(last));
            number = ints_round(floats_add(code, floats_all(-zero)));  // x 0 after the end has the code `zero`
        }
        ints_store(out->numbers + at, number);
    }
    out->zero_point = (int32_t)zero;
    out->token_scale = whole ? scale : __builtin_nanf("");
    for (int64_t b = 0; b < blocks; b++) out->scale[b] = out->token_scale;
}

static void fixed_point_token(const qllm_vectors* x, int64_t token, int64_t length, Token* out) {
    const int64_t blocks = (length + BLOCK - 1) / BLOCK;
    const float most = x->type == QLLM_FLOAT32 ? 8323072.0f : 32512.0f;
    for (int64_t b = 0; b < blocks; b++) {
        Floats v[BLOCK / 16], low = floats_zero(), high = floats_zero(), finite = floats_zero();
        for (int i = 0; i < BLOCK / 16; i++) {
            int64_t at = b * BLOCK + i * 16;
            v[i] = read(x, token, at, at_most_16(length - at));
            low = floats_min(low, v[i]);
            high = floats_max(high, v[i]);
            finite = floats_fma(v[i], floats_zero(), finite);
        }
        const float least = -floats_least(low), largest = floats_largest(high), range = largest > least ? largest : least;
        const bool whole = all_finite(finite);
        float scale = range / most, inverse = most / range;
        if (!whole || !(inverse < 3e38f)) scale = inverse = 0.0f;  // nothing but zeros, or next to nothing
        for (int i = 0; i < BLOCK / 16; i++)
            ints_store(out->numbers + b * BLOCK + i * 16, whole ? ints_round(floats_mul(v[i], floats_all(inverse))) : ints_zero());
        out->scale[b] = whole ? scale : __builtin_nanf("");
    }
    out->zero_point = 0;
    out->token_scale = 1.0f;
}

}  // namespace QLLM_NAMESPACE
