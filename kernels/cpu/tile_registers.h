// Tile registers, which AMX has: what tiles.h wants of them. The level's own vectors do the rest.
#pragma once

#include <stdint.h>

enum { TILE_ROWS = 32, TILE_TOKENS = 16, TILE_ROW_BYTES = 128 };

struct TileRegisters {
    // Makes the registers of this thread ready for units of 32, 64 or 128 codes, and gives them back.
    void (*begin)(int codes);
    void (*end)();
    // sums[stream][row][token] = sum over i < codes of  rows[row][i] columns[stream][i / 4][token][i % 4]
    //
    // of 32 rows that lie TILE_ROW_BYTES apart; `stride` bytes are from one stream (a digit of 16 tokens) to the next.
    void (*multiply)(const int8_t* rows, const uint8_t* columns, int64_t stride, int streams, int codes, int32_t* sums);
};
