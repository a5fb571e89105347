// What the kernels of each instruction set offer to the dispatcher, and what it offers to them.
#pragma once

#include "qllm_cpu.h"
#include "tile_registers.h"

struct Runtime {
    // `size` bytes of the calling thread, aligned to 64, until it asks again; null without memory.
    void* (*scratch)(int64_t size);
    // part(data, thread, threads) for each of up to `threads` threads.
    void (*parallel)(int threads, void (*part)(void*, int, int), void* data);
    const TileRegisters* tiles;  // null without any
};

struct Level {
    const char* name;
    int (*linear)(const Runtime*, const qllm_matrix*, int, const qllm_vectors*, const void* const*, void* const*, int);
    int (*encode)(const Runtime*, const qllm_numbers*, const qllm_packed*, int);
    int (*decode)(const Runtime*, const qllm_packed*, const qllm_numbers*, int);
    int (*attend)(const Runtime*, const qllm_attention*, const qllm_kv*, const qllm_kv*, int);
    double (*read_sum)(const void* data, int64_t bytes);  // something that depends on every cache line
};
