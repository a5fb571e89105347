// Rows of packed keys or values -> the panels that attention multiplies.
//
// A segment is a run of codes with one scale inside one block of 128; it takes a multiple of 64 bytes. Codes come in the
// order that is cheapest to unpack: the low and the high byte of words in turn, which are codes c and c + n/2 (see
// qllm_hf/layout.py). `Shape::order` tells which code is where, and queries and outputs are put in that order instead.
#pragma once

#include "attention_words.h"
#include "unpack.h"

namespace QLLM_NAMESPACE {

enum { SPAN = 64, MAX_SEGMENTS = 32, MAX_LENGTH = 512, MAX_PADDED = 1024 };

struct Segment {
    int64_t start, padded;  // bytes of a span's rows
    int64_t group;          // of the scale
    int64_t block, count;   // codes of the block it is in
    int64_t from, codes;    // its codes within that block, where they are in natural order
    bool turned;            // a whole block of 64 or 128 codes in the cheap order
};

struct Shape {
    int64_t length, padded, count, row_bytes, code_bytes, zeros_at, groups, scale_size;
    int32_t bits, type, symmetric;
    Segment segments[MAX_SEGMENTS];
    int16_t order[MAX_PADDED];  // code at each place, -1 where there is none
};

// One span of rows, unpacked.
struct Span {
    uint8_t* bytes;  // [SPAN][padded]
    uint8_t* panel;  // per segment [vectors][quads][64]
    float* scale;    // [segments][SPAN]
    int32_t* zero;   // [segments][SPAN]
    uint8_t* copy;   // of the rows at the end of memory
};

static bool shape_of(const qllm_kv* rows, Shape* s) {
    if (rows->bits < 2 || rows->bits > 8 || rows->length < 1 || rows->length > MAX_LENGTH || rows->type < 0 || rows->type > QLLM_FLOAT16) return false;
    const int64_t group_size = rows->group_size > 0 && rows->group_size < rows->length ? rows->group_size : rows->length;
    static const int FIELDS[9][3] = {{0}, {0}, {2}, {2, 1}, {4}, {4, 1}, {4, 2}, {4, 2, 1}, {8}};
    s->length = rows->length, s->bits = rows->bits, s->type = rows->type, s->symmetric = rows->symmetric;
    s->groups = (rows->length + group_size - 1) / group_size;
    s->scale_size = rows->type == QLLM_FLOAT32 ? 4 : 2;
    s->code_bytes = s->padded = s->count = 0;
    for (int64_t block = 0; block < rows->length; block += BLOCK) {
        const int64_t n = rows->length - block < BLOCK ? rows->length - block : (int64_t)BLOCK;
        for (int f = 0; f < 3 && FIELDS[rows->bits][f]; f++) s->code_bytes += (n * FIELDS[rows->bits][f] + 15) / 16 * 2;
        for (int64_t from = 0; from < n;) {
            const int64_t group = (block + from) / group_size, end = (group + 1) * group_size - block, codes = (end < n ? end : n) - from;
            if (s->count == MAX_SEGMENTS) return false;
            Segment* segment = s->segments + s->count++;
            segment->start = s->padded, segment->padded = (codes + 63) / 64 * 64, segment->group = group;
            segment->block = block, segment->count = n, segment->from = from, segment->codes = codes;
            segment->turned = codes == n && (n == 64 || n == 128);
            if (s->padded + segment->padded > MAX_PADDED) return false;
            for (int64_t i = 0; i < segment->padded; i++) {
                const int64_t code = segment->turned && rows->bits < 8 ? i % 2 * (n / 2) + i / 2 : from + i;
                s->order[s->padded + i] = (int16_t)(i < codes ? block + code : -1);
            }
            s->padded += segment->padded;
            from += codes;
        }
    }
    s->zeros_at = s->code_bytes + s->groups * s->scale_size;
    s->row_bytes = s->zeros_at + (rows->symmetric ? 0 : (s->groups + 1) / 2 * 2);
    return true;
}

// Where interleaved_rows puts place i of a row: vectors hold four places of each quarter of 64.
QLLM_INLINE int64_t interleaved_place(int64_t i) { return i / 64 * 64 + i / 4 % 4 * 16 + i / 16 % 4 * 4 + i % 4; }

// Register number REGISTER of a row in the cheap order.
template <int BITS, int N, int REGISTER>
QLLM_INLINE Ints row_register(const uint8_t* p) {
    enum { AT = REGISTER * 64 };
    if constexpr (BITS == 8) return ints_load(p + AT);
    enum { WIDE = BITS >= 4 ? 4 : 2, WIDE_BYTES = N * WIDE / 8, REST = BITS - WIDE };
    Ints v = bytes_of_planes<WIDE_BYTES, WIDE, 0, AT / WIDE_BYTES>(p);
    if constexpr (REST >= 2) v = ints_either(v, bytes_of_planes<N / 4, 2, WIDE, AT / (N / 4)>(p + WIDE_BYTES));
    if constexpr (REST % 2 == 1)
        v = ints_either(v, bytes_of_planes<N / 8, 1, BITS - 1, AT / (N / 8)>(p + WIDE_BYTES + (REST >= 2 ? N / 4 : 0)));
    return v;
}

// One field of 16 rows -> its planes at their quads of the panel, put to what is there unless it is the first field.
template <int N, int WIDTH, int SHIFT>
QLLM_INLINE void field_columns(const uint8_t* p, int64_t stride, uint8_t* out) {
    enum { BYTES = N * WIDTH / 8, UNIT = BYTES < 16 ? BYTES : 16 };
    for (int at = 0; at < BYTES; at += 16) {
        Ints column[4];
        columns_of_rows(p + at, stride, column);
#define PLANE(j, k)                                                                                \
    if constexpr (k * WIDTH < 8 && 4 * j < UNIT) {                                                 \
        uint8_t* place = out + (k * BYTES / 4 + at / 4 + j) * 64;                                  \
        const Ints v = plane_of<WIDTH, SHIFT, (k * WIDTH < 8 ? k : 0)>(column[j]);                 \
        ints_store(place, SHIFT ? ints_either(v, ints_load(place)) : v);                           \
    }
#define PLANES(j) PLANE(j, 0) PLANE(j, 1) PLANE(j, 2) PLANE(j, 3) PLANE(j, 4) PLANE(j, 5) PLANE(j, 6) PLANE(j, 7)
        PLANES(0) PLANES(1) PLANES(2) PLANES(3)
#undef PLANES
#undef PLANE
    }
}

template <int BITS, int N>
static void key_panel(const uint8_t* p, int64_t stride, uint8_t* panel, int64_t ahead) {
    for (int t = 0; t < SPAN; t += 16, p += 16 * stride, panel += N / 4 * 64) {
        for (int i = 0; i < 16; i++) {
            __builtin_prefetch(p + i * stride + ahead);
            if (N * BITS > 512) __builtin_prefetch(p + i * stride + ahead + 64);
        }
        if constexpr (BITS == 8) {
            for (int at = 0; at < N; at += 16) {
                Ints column[4];
                columns_of_rows(p + at, stride, column);
                for (int j = 0; j < 4; j++) ints_store(panel + (at / 4 + j) * 64, column[j]);
            }
        } else {
            enum { WIDE = BITS >= 4 ? 4 : 2, WIDE_BYTES = N * WIDE / 8, REST = BITS - WIDE };
            field_columns<N, WIDE, 0>(p, stride, panel);
            if constexpr (REST >= 2) field_columns<N, 2, WIDE>(p + WIDE_BYTES, stride, panel);
            if constexpr (REST % 2 == 1) field_columns<N, 1, BITS - 1>(p + WIDE_BYTES + (REST >= 2 ? N / 4 : 0), stride, panel);
        }
    }
}

template <int BITS, int N>
static void value_panel(const uint8_t* p, int64_t stride, uint8_t* panel, int64_t ahead) {
    for (int t = 0; t < SPAN; t += 4, p += 4 * stride, panel += 64) {
        for (int i = 0; i < 4; i++) {
            __builtin_prefetch(p + i * stride + ahead);
            if (N * BITS > 512) __builtin_prefetch(p + i * stride + ahead + 64);
        }
#define ROW(i, r) row_register<BITS, N, r>(p + i * stride)
        interleave_rows(ROW(0, 0), ROW(1, 0), ROW(2, 0), ROW(3, 0), panel, SPAN * 16);
        if constexpr (N == 128) interleave_rows(ROW(0, 1), ROW(1, 1), ROW(2, 1), ROW(3, 1), panel + SPAN * 64, SPAN * 16);
#undef ROW
    }
}

// A segment in natural order: first its bytes, one row after another.
template <int BITS>
static void natural_rows(const Segment* segment, const uint8_t* p, int64_t stride, uint8_t* out) {
    for (int t = 0; t < SPAN; t++, p += stride, out += segment->padded) {
        Words codes[QUARTERS];
        uint8_t natural[BLOCK + 64];
        int16_t words[BLOCK];
        if (segment->count == BLOCK)
            unpack_block<BITS>(p, codes);
        else
            unpack_short_block<BITS>(p, (int)segment->count, codes);
        for (int q = 0; q < QUARTERS; q++) store_words(words + q * QUARTER, codes[q]);
        for (int i = 0; i < BLOCK; i++) natural[i] = (uint8_t)words[i];
        memset(out, 0, segment->padded);
        memcpy(out, natural + segment->from, segment->codes);
    }
}

// Panels of one segment of SPAN rows: keys as [vector of 16 tokens][quad of codes], values as [vector of 16 codes][quad of tokens].
template <int BITS>
static void panel_of(const Segment* segment, const uint8_t* rows, int64_t stride, bool keys, uint8_t* bytes, uint8_t* panel, int64_t ahead) {
    if (segment->turned && segment->count == 128)
        return keys ? key_panel<BITS, 128>(rows, stride, panel, ahead) : value_panel<BITS, 128>(rows, stride, panel, ahead);
    if (segment->turned) return keys ? key_panel<BITS, 64>(rows, stride, panel, ahead) : value_panel<BITS, 64>(rows, stride, panel, ahead);
    const int64_t step = segment->padded;
    natural_rows<BITS>(segment, rows, stride, bytes);
    for (int64_t t = 0; keys && t < SPAN; t += 16)
        for (int64_t c = 0; c < step; c += 16) {
            Ints column[4];
            columns_of_rows(bytes + t * step + c, step, column);
            for (int j = 0; j < 4; j++) ints_store(panel + (t / 16 * (step / 4) + c / 4 + j) * 64, column[j]);
        }
    for (int64_t t = 0; !keys && t < SPAN; t += 4)
        for (int64_t c = 0; c < step; c += 64) {
            const uint8_t* p = bytes + t * step + c;
            interleave_rows(ints_load(p), ints_load(p + step), ints_load(p + 2 * step), ints_load(p + 3 * step),
                            panel + (c / 16 * (SPAN / 4) + t / 4) * 64, SPAN * 16);
        }
}

static float number_in_memory(const uint8_t* p, int type) {
    float v[16];
    floats_store(v, floats_from_memory(p, type, 1));
    return v[0];
}

// Scales and zero points of one group of SPAN rows.
static __attribute__((noinline)) void parameters_of(const Shape* s, int64_t group, const uint8_t* rows, int64_t stride, float* scale, int32_t* zero) {
    const uint8_t *scales = rows + s->code_bytes + group * s->scale_size, *zeros = rows + s->zeros_at + group;
    if (s->type == QLLM_BFLOAT16) {
        const bool together = s->groups == 1 && !s->symmetric;  // scale and zero point in one run of four bytes
        for (int i = 0; i < SPAN; i += 16) {
            const Ints four = ints_of_rows(scales + i * stride, stride);
            floats_store(scale + i, floats_of_bits(ints_left<16>(four)));
            if (together) ints_store(zero + i, ints_mask(ints_right<16>(four), 255));
        }
        if (together) return;
    } else {
        for (int i = 0; i < SPAN; i++) scale[i] = number_in_memory(scales + i * stride, s->type);
    }
    for (int i = 0; i < SPAN; i++) zero[i] = s->symmetric ? 1 << (s->bits - 1) : zeros[i * stride];
}

// `count` rows -> the panel, scales and zero points; rows after them count as zero.
static void read_span(const Shape* s, const qllm_kv* r, const uint8_t* rows, int64_t count, bool ends, bool keys, Span* span) {
    int64_t stride = r->token_stride, ahead = SPAN * stride;
    if (count < SPAN || ends) {  // reading four bytes at a time must not leave the memory
        for (int64_t t = 0; t < count; t++) memcpy(span->copy + t * s->row_bytes, rows + t * stride, s->row_bytes);
        memset(span->copy + count * s->row_bytes, 0, (SPAN - count) * s->row_bytes + 64);
        rows = span->copy, stride = s->row_bytes, ahead = 0;
    }
    const uint8_t* codes = rows;
    for (int64_t i = 0; i < s->count; i++) {
        const Segment* segment = s->segments + i;
        uint8_t* panel = span->panel + segment->start * SPAN;
        switch (s->bits) {
            case 2: panel_of<2>(segment, codes, stride, keys, span->bytes, panel, ahead); break;
            case 3: panel_of<3>(segment, codes, stride, keys, span->bytes, panel, ahead); break;
            case 4: panel_of<4>(segment, codes, stride, keys, span->bytes, panel, ahead); break;
            case 5: panel_of<5>(segment, codes, stride, keys, span->bytes, panel, ahead); break;
            case 6: panel_of<6>(segment, codes, stride, keys, span->bytes, panel, ahead); break;
            case 7: panel_of<7>(segment, codes, stride, keys, span->bytes, panel, ahead); break;
            default: panel_of<8>(segment, codes, stride, keys, span->bytes, panel, ahead); break;
        }
        if (i + 1 < s->count && segment[1].block != segment->block) codes += BLOCK * s->bits / 8;
        parameters_of(s, segment->group, rows, stride, span->scale + i * SPAN, span->zero + i * SPAN);
    }
}

}  // namespace QLLM_NAMESPACE
