// The tile registers of AMX. A register holds 16 rows of 64 bytes: rows of a matrix, or 64 codes' worth of 16 tokens.
#include <immintrin.h>
#include <string.h>

#include "tile_registers.h"

namespace {

struct alignas(64) Shapes {
    uint8_t palette, first_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
static_assert(sizeof(Shapes) == 64, "what ldtilecfg reads");

// Registers 0 to 3 are sums, 4 and 5 rows, 6 and 7 tokens.
void begin(int codes) {
    const int depth = codes < 64 ? codes : 64;
    Shapes shapes;
    memset(&shapes, 0, sizeof shapes);
    shapes.palette = 1;
    for (int i = 0; i < 8; i++) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
    shapes.row_bytes[4] = shapes.row_bytes[5] = (uint16_t)depth;
    shapes.rows[6] = shapes.rows[7] = (uint8_t)(depth / 4);
    _tile_loadconfig(&shapes);
}

void end() { _tile_release(); }

template <bool TWO>
void multiply_streams(const int8_t* rows, const uint8_t* columns, int64_t stride, int codes, int32_t* sums) {
    enum { HALF = 16 * TILE_TOKENS, STREAM = 2 * HALF };
    _tile_zero(0);
    _tile_zero(1);
    if (TWO) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int i = 0; i < codes; i += 64) {
        _tile_loadd(4, rows + i, TILE_ROW_BYTES);
        _tile_loadd(5, rows + 16 * TILE_ROW_BYTES + i, TILE_ROW_BYTES);
        _tile_loadd(6, columns + i * TILE_TOKENS, 4 * TILE_TOKENS);
        _tile_dpbsud(0, 4, 6);
        _tile_dpbsud(1, 5, 6);
        if (TWO) {
            _tile_loadd(7, columns + stride + i * TILE_TOKENS, 4 * TILE_TOKENS);
            _tile_dpbsud(2, 4, 7);
            _tile_dpbsud(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 4 * TILE_TOKENS);
    _tile_stored(1, sums + HALF, 4 * TILE_TOKENS);
    if (TWO) {
        _tile_stored(2, sums + STREAM, 4 * TILE_TOKENS);
        _tile_stored(3, sums + STREAM + HALF, 4 * TILE_TOKENS);
    }
}

void multiply(const int8_t* rows, const uint8_t* columns, int64_t stride, int streams, int codes, int32_t* sums) {
    for (; streams > 1; streams -= 2, columns += 2 * stride, sums += 2 * TILE_ROWS * TILE_TOKENS)
        multiply_streams<true>(rows, columns, stride, codes, sums);
    if (streams) multiply_streams<false>(rows, columns, stride, codes, sums);
}

}  // namespace

extern const TileRegisters QLLM_AMX;
const TileRegisters QLLM_AMX = {begin, end, multiply};
