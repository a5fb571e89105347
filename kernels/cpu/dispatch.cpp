// The C interface: chooses the level, lends memory and threads.
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <chrono>

#include "level.h"
#include "tile_check.h"

#define QLLM_DECLARE(space) \
    namespace space {       \
    extern const Level LEVEL; \
    }
QLLM_DECLARE(qllm_portable)
// The build says which other levels it has: a compiler may know fewer of them.
#ifdef QLLM_WITH_AVX2
QLLM_DECLARE(qllm_avx2)
#endif
#ifdef QLLM_WITH_AVX2_VNNI
QLLM_DECLARE(qllm_avx2_vnni)
#endif
#ifdef QLLM_WITH_AVX512_VNNI
QLLM_DECLARE(qllm_avx512_vnni)
#endif
#if defined(QLLM_WITH_AMX) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
extern const TileRegisters QLLM_AMX;
#endif

#ifdef __x86_64__
#include <cpuid.h>

namespace {

struct Cpu {
    bool avx2 = false, avx2_vnni = false, avx512_vnni = false, amx = false;
    Cpu() {
        unsigned a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d)) return;
        const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
        if (!osxsave) return;
        unsigned low, high;
        __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        const bool ymm = (low & 6) == 6, zmm = (low & 0xE6) == 0xE6, tmm = (low & 0x60000) == 0x60000;  // registers that the system saves
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        const bool has_tiles = d >> 24 & 1, has_int8 = d >> 25 & 1;
        const bool has_avx2 = b >> 5 & 1, f = b >> 16 & 1, dq = b >> 17 & 1, bw = b >> 30 & 1, vl = b >> 31 & 1, vnni = c >> 11 & 1;
        avx2 = ymm && has_avx2 && fma && f16c;
        avx512_vnni = avx2 && zmm && f && dq && bw && vl && vnni;
        amx = avx512_vnni && tmm && has_tiles && has_int8;
        if (__get_cpuid_count(7, 1, &a, &b, &c, &d)) avx2_vnni = avx2 && (a >> 4 & 1);
    }
};

}  // namespace
#endif

namespace {

// Memory that a thread keeps between calls. What a very long prompt needed is given back.
struct Scratch {
    void* memory = nullptr;
    int64_t size = 0;
    ~Scratch() { free(memory); }
    void* get(int64_t wanted) {
        const int64_t KEEP = 64 << 20;
        if (wanted > size || (size > KEEP && wanted <= KEEP)) {
            free(memory);
            size = 0;
            const int64_t rounded = (wanted + 4095) / 4096 * 4096;
            memory = aligned_alloc(4096, (size_t)rounded);
            if (memory) size = rounded;
        }
        return memory;
    }
};

void* scratch(int64_t size) {
    static thread_local Scratch kept;
    return kept.get(size);
}

qllm_run run_on_threads = nullptr;

struct Work {
    void (*part)(void*, int, int);
    void* data;
    int threads;
    std::atomic<int> started{0};
};

// Parts are taken by whoever comes, so that all are done even where OpenMP gives fewer threads than were asked for.
void work_body(void* data) {
    Work* work = (Work*)data;
    for (int part; (part = work->started.fetch_add(1, std::memory_order_relaxed)) < work->threads;)
        work->part(work->data, part, work->threads);
}

void parallel(int threads, void (*part)(void*, int, int), void* data) {
    if (threads < 2 || !run_on_threads) {
        for (int i = 0; i < (threads < 1 ? 1 : threads); i++) part(data, i, threads < 1 ? 1 : threads);
        return;
    }
    Work work;
    work.part = part, work.data = data, work.threads = threads;
    run_on_threads(work_body, &work, (unsigned)threads, 0);
}

// The level whose vectors and the runtime whose tiles are used.
struct Choice {
    const char* name;
    const Level* level;
    Runtime runtime;
};

#if defined(QLLM_WITH_AMX) && defined(QLLM_WITH_AVX512_VNNI) && defined(__linux__)
// The system lends these registers to a process that asks. They are used once they have proved to compute what they should.
bool tiles_work() {
    const long REQUEST = 0x1023, TILE_DATA = 18;
    return !syscall(SYS_arch_prctl, REQUEST, TILE_DATA) && same_as_twin(&QLLM_AMX);
}
#endif

struct Available {
    Choice choices[8];
    int count = 0;
    char names[128] = "";
    Available() {
#ifdef __x86_64__
        const Cpu cpu;
        (void)cpu;
#endif
#ifdef QLLM_WITH_AVX512_VNNI
#if defined(QLLM_WITH_AMX) && defined(__linux__)
        if (cpu.amx && tiles_work()) add("amx", &qllm_avx512_vnni::LEVEL, &QLLM_AMX);
#endif
        if (cpu.avx512_vnni) add(&qllm_avx512_vnni::LEVEL);
#endif
#ifdef QLLM_WITH_AVX2_VNNI
        if (cpu.avx2_vnni) add(&qllm_avx2_vnni::LEVEL);
#endif
#ifdef QLLM_WITH_AVX2
        if (cpu.avx2) add(&qllm_avx2::LEVEL);
#endif
        add(&qllm_portable::LEVEL);
        for (int i = 0; i < count; i++) strcat(strcat(names, i ? " " : ""), choices[i].name);
#ifdef QLLM_WITH_AVX512_VNNI
        // for tests on processors without tile registers; not listed, and never chosen by itself
        if (cpu.avx512_vnni) add("amx_twin", &qllm_avx512_vnni::LEVEL, &TILE_TWIN);
#endif
    }
    void add(const Level* level) { add(level->name, level, nullptr); }
    void add(const char* name, const Level* level, const TileRegisters* tiles) {
        choices[count++] = {name, level, {scratch, parallel, tiles}};
    }
};

const Available& available() {
    static const Available found;
    return found;
}

std::atomic<const Choice*> chosen{nullptr};

const Choice* choice() {
    const Choice* now = chosen.load(std::memory_order_acquire);
    return now ? now : available().choices;
}

struct ReadJob {
    const char* data;
    int64_t bytes;
    double sums[64];
};

void read_part(void* data, int part, int parts) {
    ReadJob* job = (ReadJob*)data;
    const int64_t size = job->bytes / parts / 64 * 64;
    job->sums[part] = choice()->level->read_sum(job->data + part * size, size);
}

bool known(const qllm_matrix* w, int64_t length) {
    const bool groups = w->group_size >= w->length || (w->group_size > 0 && w->group_size % 32 == 0);
    return w->bits >= 2 && w->bits <= 8 && groups && w->length == length && w->length > 0 && w->rows >= 0 && w->scale_type >= 0 &&
           w->scale_type <= QLLM_FLOAT16 && w->words && w->scale;
}

bool possible(const qllm_numbers* x, const qllm_packed* packed) {
    return x->type >= 0 && x->type <= QLLM_FLOAT16 && packed->scale_type >= 0 && packed->scale_type <= QLLM_FLOAT16 &&
           packed->bits >= 2 && packed->bits <= 8 && packed->group_size >= 0 && x->length >= 0;
}

int64_t numbers_count(const qllm_numbers* x) { return x->sizes[0] * x->sizes[1] * x->sizes[2] * x->length; }

// The three parts of a row lie one after another.
qllm_packed parts_of(const qllm_rows* rows, const qllm_numbers* x) {
    const int64_t group_size = rows->group_size > 0 && rows->group_size < x->length ? rows->group_size : x->length;
    const int64_t groups = x->length ? (x->length + group_size - 1) / group_size : 0, rest = x->length % 128;
    int64_t words = (x->length - rest) * rows->bits / 16;
    for (int width = 8; width; width /= 2)  // a field for each power of two in the bits
        if (rows->bits & width) words += (rest * width + 15) / 16;
    qllm_packed packed;
    packed.words = rows->data;
    packed.scale = (char*)rows->data + 2 * words;
    packed.zero_point = rows->symmetric ? nullptr : (char*)packed.scale + groups * (x->type == QLLM_FLOAT32 ? 4 : 2);
    for (int i = 0; i < 3; i++) packed.word_strides[i] = packed.scale_strides[i] = packed.zero_strides[i] = rows->strides[i];
    packed.group_size = rows->group_size, packed.bits = rows->bits, packed.scale_type = x->type;
    packed.padded = 1, packed.reserved = 0;
    return packed;
}

}  // namespace

extern "C" {

int qllm_abi(void) { return QLLM_ABI; }

const char* qllm_levels(void) { return available().names; }

const char* qllm_level(void) { return choice()->name; }

int qllm_set_level(const char* name) {
    if (!name) {
        chosen.store(nullptr, std::memory_order_release);
        return QLLM_OK;
    }
    for (int i = 0; i < available().count; i++)
        if (!strcmp(available().choices[i].name, name)) {
            chosen.store(available().choices + i, std::memory_order_release);
            return QLLM_OK;
        }
    return QLLM_BAD_ARGUMENT;
}

void qllm_set_parallel(qllm_run run) { run_on_threads = run; }

int qllm_linear(const qllm_matrix* weights, int count, const qllm_vectors* x, const void* const* bias, void* const* y, int threads) {
    if (x->type < 0 || x->type > QLLM_FLOAT16 || x->bits < 0 || x->bits == 1 || x->bits > 8) return QLLM_BAD_ARGUMENT;
    for (int m = 0; m < count; m++)
        if (!known(weights + m, weights->length)) return QLLM_BAD_ARGUMENT;
    const Choice* now = choice();
    return now->level->linear(&now->runtime, weights, count, x, bias, y, threads);
}

int qllm_encode(const qllm_numbers* x, const qllm_packed* packed, int threads) {
    if (!possible(x, packed)) return QLLM_BAD_ARGUMENT;
    const Choice* now = choice();
    return numbers_count(x) ? now->level->encode(&now->runtime, x, packed, threads) : QLLM_OK;
}

int qllm_decode(const qllm_packed* packed, const qllm_numbers* y, int threads) {
    if (!possible(y, packed)) return QLLM_BAD_ARGUMENT;
    const Choice* now = choice();
    return numbers_count(y) ? now->level->decode(&now->runtime, packed, y, threads) : QLLM_OK;
}

int qllm_encode_rows(const qllm_numbers* x, const qllm_rows* rows, int threads) {
    const qllm_packed packed = parts_of(rows, x);
    return qllm_encode(x, &packed, threads);
}

int qllm_decode_rows(const qllm_rows* rows, const qllm_numbers* y, int threads) {
    const qllm_packed packed = parts_of(rows, y);
    return qllm_decode(&packed, y, threads);
}

int qllm_linear_call(const qllm_call* call) {
    void* const* y = (void* const*)(call + 1);
    const qllm_matrix* weights = (const qllm_matrix*)(y + call->count);
    const void* const* bias = (const void* const*)(weights + call->count);
    return qllm_linear(weights, call->count, &call->x, bias, y, call->threads);
}

int qllm_attend(const qllm_attention* request, const qllm_kv* keys, const qllm_kv* values, int threads) {
    const qllm_attention* r = request;
    if (r->type < 0 || r->type > QLLM_FLOAT16 || (r->mask && (r->mask_type < 0 || r->mask_type > QLLM_BOOL))) return QLLM_BAD_ARGUMENT;
    if (r->batch < 0 || r->heads < 1 || r->group < 1 || r->count < 1 || r->tokens < 1 || keys->type != values->type || r->part < 0 || r->part > QLLM_VALUES) return QLLM_BAD_ARGUMENT;
    const Choice* now = choice();
    return now->level->attend(&now->runtime, request, keys, values, threads);
}

double qllm_read_bandwidth(const void* data, int64_t bytes, int threads) {
    if (threads > 64) threads = 64;
    if (threads < 1) threads = 1;
    ReadJob job;
    job.data = (const char*)data, job.bytes = bytes;
    const auto start = std::chrono::steady_clock::now();
    parallel(threads, read_part, &job);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    double sum = 0;
    for (int i = 0; i < threads; i++) sum += job.sums[i];
    volatile double used = sum;  // or the compiler would not read at all
    (void)used;
    return (double)bytes / seconds / 1e9;
}

}  // extern "C"
