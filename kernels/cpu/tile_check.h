// Tile registers written out in C++, and whether those of the processor agree with them.
#pragma once

#include <stdint.h>
#include <string.h>

#include "tile_registers.h"

namespace {

void multiply_without_registers(const int8_t* rows, const uint8_t* columns, int64_t stride, int streams, int codes, int32_t* sums) {
    for (int s = 0; s < streams; s++, columns += stride, sums += TILE_ROWS * TILE_TOKENS)
        for (int r = 0; r < TILE_ROWS; r++) {
            int32_t total[TILE_TOKENS] = {0};
            for (int i = 0; i < codes; i++)
                for (int t = 0; t < TILE_TOKENS; t++)
                    total[t] += rows[r * TILE_ROW_BYTES + i] * columns[(i / 4 * TILE_TOKENS + t) * 4 + i % 4];
            memcpy(sums + r * TILE_TOKENS, total, sizeof total);
        }
}

const TileRegisters TILE_TWIN = {[](int) {}, [] {}, multiply_without_registers};

// One product for each size of a unit and each number of streams, of bytes from end to end of their range.
[[maybe_unused]] bool same_as_twin(const TileRegisters* tiles) {
    enum { STREAMS = 3, STRIDE = TILE_ROW_BYTES * TILE_TOKENS };
    static int8_t rows[TILE_ROWS * TILE_ROW_BYTES];
    static uint8_t columns[STREAMS * STRIDE];
    static int32_t found[STREAMS * TILE_ROWS * TILE_TOKENS], wanted[STREAMS * TILE_ROWS * TILE_TOKENS];
    uint32_t state = 1;
    const auto next = [&] { return (uint8_t)((state = state * 1664525u + 1013904223u) >> 24); };
    for (int8_t& byte : rows) byte = (int8_t)next();
    for (uint8_t& byte : columns) byte = next();
    for (int codes = 32; codes <= 128; codes *= 2)
        for (int streams = 1; streams <= STREAMS; streams++) {
            const size_t size = sizeof(int32_t) * streams * TILE_ROWS * TILE_TOKENS;
            TILE_TWIN.multiply(rows, columns, STRIDE, streams, codes, wanted);
            memset(found, 0x55, size);
            tiles->begin(codes);
            tiles->multiply(rows, columns, STRIDE, streams, codes, found);
            tiles->end();
            if (memcmp(found, wanted, size)) return false;
        }
    return true;
}

}  // namespace
