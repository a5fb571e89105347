// The C interface of the CPU kernels. Plain C, so that one build serves every version of Python and torch.
//
// Letters as everywhere in the project: O out features, I in features (`length`), G groups, T tokens, D head dim.
// A packed matrix is what docs/format.md describes; the kernels read it as it is on disk.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

// Counts up with every change of this interface; the Python side refuses a library of another number.
#define QLLM_ABI 1

enum qllm_type { QLLM_FLOAT32 = 0, QLLM_BFLOAT16 = 1, QLLM_FLOAT16 = 2 };

enum qllm_status {
    QLLM_OK = 0,
    QLLM_BAD_ARGUMENT = 1,  // bits, a group size or a type that no kernel takes
    QLLM_NO_MEMORY = 2,
    QLLM_NOT_FINITE = 3,  // infinities and NaN are not quantized here
};

// A packed matrix [rows, length]. Strides count elements from one row to the next.
typedef struct {
    const uint16_t* words;
    const void* scale;
    const uint8_t* zero_point;  // null: symmetric, the zero point is 2^(bits - 1)
    int64_t rows, length;
    int64_t word_stride, scale_stride, zero_stride;
    int64_t group_size;  // a multiple of 32, or at least `length`: one group for the row
    int32_t bits;        // 2..8
    int32_t scale_type;  // qllm_type
} qllm_matrix;

// Vectors [tokens, length] of one type; rows are contiguous, `stride` elements apart.
typedef struct {
    const void* data;
    int64_t tokens, stride;
    int32_t type;
    int32_t bits;       // quantized per token to so many bits first; 0: not quantized
    int32_t symmetric;  // of that quantization
    int32_t reserved;
} qllm_vectors;

// Numbers [sizes, length] of one type. The last dimension is contiguous; strides count bytes.
typedef struct {
    void* data;
    int64_t sizes[3], strides[3];
    int64_t length;
    int32_t type, reserved;
} qllm_numbers;

// Where such numbers lie packed: codes, scales and zero points of one vector are contiguous each. Strides count bytes.
typedef struct {
    void *words, *scale;
    void* zero_point;  // null: symmetric
    int64_t word_strides[3], scale_strides[3], zero_strides[3];
    int64_t group_size;  // any; 0: one group for the vector
    int32_t bits, scale_type;
    int32_t padded;  // an odd number of zero points is followed by a byte 0
    int32_t reserved;
} qllm_packed;

// Rows of a cache (docs/format.md): codes, scales in the type of the numbers, zero points. Strides count bytes.
typedef struct {
    void* data;
    int64_t strides[3];
    int64_t group_size;
    int32_t bits, symmetric;
} qllm_rows;

int qllm_abi(void);

// Names of the instruction set levels that this build has and this processor runs, best first, with spaces between.
const char* qllm_levels(void);
const char* qllm_level(void);
// Choose one of them; null goes back to the best. Returns QLLM_BAD_ARGUMENT for a name that is not among them.
int qllm_set_level(const char* name);

// How work is spread: `run(body, data, threads, 0)` calls body(data) on that many threads and waits for them. It is
// GOMP_parallel of the OpenMP that torch uses, so that there is one pool of threads. Without it everything runs on the
// calling thread.
typedef void (*qllm_run)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
void qllm_set_parallel(qllm_run run);

// y[t, o] = sum over i of x[t, i] w[o, i] + bias[o] for each of `count` matrices that share the vectors. `bias` may be
// null, and so may each of its entries; bias and y have the type of x, y[m] is contiguous [tokens, rows of matrix m].
int qllm_linear(const qllm_matrix* weights, int count, const qllm_vectors* x, const void* const* bias, void* const* y,
                int threads);

// Quantize and pack, and back. Numbers that are not finite give QLLM_NOT_FINITE; part of `packed` may be written then.
int qllm_encode(const qllm_numbers* x, const qllm_packed* packed, int threads);
int qllm_decode(const qllm_packed* packed, const qllm_numbers* y, int threads);
int qllm_encode_rows(const qllm_numbers* x, const qllm_rows* rows, int threads);
int qllm_decode_rows(const qllm_rows* rows, const qllm_numbers* y, int threads);

// Keys or values of a layer as they are cached (see qllm_hf/kv_rows.py): rows [batch, heads, tokens] of `length` codes,
// their scales, their zero points. Strides count bytes; the last row ends the memory that may be read.
typedef struct {
    const void* rows;
    int64_t batch_stride, head_stride, token_stride;
    int64_t length, group_size;
    int32_t bits, type, symmetric, reserved;
} qllm_kv;

enum { QLLM_BOOL = 3 };  // of a mask: one byte, not 0 where a key is seen

// softmax(cap(scale q k') + mask) v. The query is [batch, heads * group, count, length of the keys], and query head h
// reads key head h / group; `out` is like it, contiguous, with the length of the values. Strides count elements.
typedef struct {
    const void* query;
    void* out;
    const void* mask;    // [batch, heads * group, count, tokens], the last dimension contiguous; or null
    const float* sinks;  // [heads * group]: one more score, without a value; or null
    int64_t batch, heads, group, count, tokens;
    int64_t query_strides[3], mask_strides[3];  // of batch, head, number of the query; 0 where a mask has one for all
    float scale, softcap;                       // 0: no soft cap
    int32_t type, mask_type, causal;  // causal: query t sees the keys 0 .. t
    int32_t part;                     // qllm_part
} qllm_attention;

// Where a model does the softmax itself. SCORES: `out` is scale q k' [batch, heads * group, count, tokens]. VALUES: the
// query is weights of that shape, `out` is their product with the values. Mask, cap, sinks and `causal` are not used.
enum qllm_part { QLLM_WHOLE = 0, QLLM_SCORES = 1, QLLM_VALUES = 2 };

int qllm_attend(const qllm_attention* request, const qllm_kv* keys, const qllm_kv* values, int threads);

// The same with all arguments in one piece of memory, which is cheap to make in Python: behind these lie
// void* y[count], qllm_matrix weights[count], const void* bias[count].
typedef struct {
    qllm_vectors x;
    int32_t count, threads;
} qllm_call;

int qllm_linear_call(const qllm_call* call);

// Bytes per second that `threads` threads read from `bytes` of memory at `data`, in gigabytes: the limit of every kernel.
double qllm_read_bandwidth(const void* data, int64_t bytes, int threads);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
