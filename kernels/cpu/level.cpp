// The kernels of one instruction set: this file is compiled once for each, with its flags and its QLLM_LEVEL_... .
#include "attention.h"
#include "decode.h"
#include "linear.h"

namespace QLLM_NAMESPACE {

// Eight streams of one load per cache line.
static double read_sum(const void* data, int64_t bytes) {
    const char* p = (const char*)data;
    const int64_t part = bytes / 8 / 64 * 64;
    Ints sum[8];
    for (int s = 0; s < 8; s++) sum[s] = ints_zero();
    for (int64_t i = 0; i < part; i += 64)
        for (int s = 0; s < 8; s++) {
            __builtin_prefetch(p + s * part + i + 1024);
            sum[s] = ints_minus(sum[s], ints_load(p + s * part + i));
        }
    int64_t total = 0;
    for (int s = 0; s < 8; s++) total += ints_sum(sum[s]);
    return (double)total;
}

extern const Level LEVEL;
const Level LEVEL = {QLLM_LEVEL_NAME, linear, encode, decode, attend, read_sum};

}  // namespace QLLM_NAMESPACE
