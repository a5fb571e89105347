// The instructions of AMX that amx.cpp uses, as the manual describes them, for processors that have none. What the manual
// calls an error ends the program.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

namespace emulated {

struct Register {
    int rows = 0, row_bytes = 0;
    uint8_t data[16][64] = {};
};
inline Register registers[8];
inline bool configured = false;

inline void need(bool condition) {
    if (!condition) abort();
}

}  // namespace emulated

inline void _tile_loadconfig(const void* memory) {
    const uint8_t* p = (const uint8_t*)memory;
    emulated::need(p[0] == 1 && p[1] == 0);
    for (int i = 2; i < 16; i++) emulated::need(p[i] == 0);
    for (int i = 0; i < 8; i++) {
        uint16_t row_bytes;
        memcpy(&row_bytes, p + 16 + 2 * i, 2);
        emulated::need(row_bytes <= 64 && p[48 + i] <= 16);
        emulated::registers[i] = emulated::Register();
        emulated::registers[i].row_bytes = row_bytes, emulated::registers[i].rows = p[48 + i];
    }
    emulated::configured = true;
}

inline void _tile_release() {
    for (auto& each : emulated::registers) each = emulated::Register();
    emulated::configured = false;
}

inline void _tile_zero(int tile) {
    emulated::need(emulated::configured);
    memset(emulated::registers[tile].data, 0, sizeof emulated::registers[tile].data);
}

inline void _tile_loadd(int tile, const void* base, int64_t stride) {
    emulated::Register& to = emulated::registers[tile];
    emulated::need(emulated::configured);
    memset(to.data, 0, sizeof to.data);
    for (int r = 0; r < to.rows; r++) memcpy(to.data[r], (const char*)base + r * stride, to.row_bytes);
}

inline void _tile_stored(int tile, void* base, int64_t stride) {
    const emulated::Register& from = emulated::registers[tile];
    emulated::need(emulated::configured);
    for (int r = 0; r < from.rows; r++) memcpy((char*)base + r * stride, from.data[r], from.row_bytes);
}

// sums[m][n] += sum over k and the four bytes i of  signed a[m][4 k + i]  times  unsigned b[k][4 n + i]
inline void _tile_dpbsud(int sums, int left, int right) {
    emulated::Register &c = emulated::registers[sums], &a = emulated::registers[left], &b = emulated::registers[right];
    emulated::need(emulated::configured && sums != left && sums != right && left != right);
    emulated::need(a.row_bytes == 4 * b.rows && c.rows == a.rows && c.row_bytes == b.row_bytes);
    for (int m = 0; m < c.rows; m++)
        for (int n = 0; n < c.row_bytes / 4; n++) {
            int32_t total;
            memcpy(&total, c.data[m] + 4 * n, 4);
            for (int k = 0; k < b.rows; k++)
                for (int i = 0; i < 4; i++) total += (int8_t)a.data[m][4 * k + i] * b.data[k][4 * n + i];
            memcpy(c.data[m] + 4 * n, &total, 4);
        }
}
