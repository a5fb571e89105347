// Prints which tile registers the check accepts: those of amx.cpp, with the instructions of immintrin.h in this folder,
// and some that are wrong on purpose.
#include <stdio.h>

#include "amx.cpp"
#include "tile_check.h"

namespace {

void wrong_sign(const int8_t* rows, const uint8_t* columns, int64_t stride, int streams, int codes, int32_t* sums) {
    for (int s = 0; s < streams; s++)
        for (int r = 0; r < TILE_ROWS; r++)
            for (int t = 0; t < TILE_TOKENS; t++) {
                int32_t total = 0;
                for (int i = 0; i < codes; i++)
                    total += (uint8_t)rows[r * TILE_ROW_BYTES + i] * columns[s * stride + (i / 4 * TILE_TOKENS + t) * 4 + i % 4];
                *sums++ = total;
            }
}

void last_row_missing(const int8_t* rows, const uint8_t* columns, int64_t stride, int streams, int codes, int32_t* sums) {
    TILE_TWIN.multiply(rows, columns, stride, streams, codes, sums);
    for (int t = 0; t < TILE_TOKENS; t++) sums[(TILE_ROWS - 1) * TILE_TOKENS + t] = 0;
}

void second_half_missing(const int8_t* rows, const uint8_t* columns, int64_t stride, int streams, int codes, int32_t* sums) {
    TILE_TWIN.multiply(rows, columns, stride, streams, codes < 64 ? codes : 64, sums);
}

void only_two_streams(const int8_t* rows, const uint8_t* columns, int64_t stride, int streams, int codes, int32_t* sums) {
    TILE_TWIN.multiply(rows, columns, stride, streams < 2 ? streams : 2, codes, sums);
}

bool accepted(void (*multiply)(const int8_t*, const uint8_t*, int64_t, int, int, int32_t*)) {
    const TileRegisters wrong = {[](int) {}, [] {}, multiply};
    return same_as_twin(&wrong);
}

}  // namespace

int main() {
    printf("amx %d\n", same_as_twin(&QLLM_AMX));
    printf("wrong_sign %d\n", accepted(wrong_sign));
    printf("last_row_missing %d\n", accepted(last_row_missing));
    printf("second_half_missing %d\n", accepted(second_half_missing));
    printf("only_two_streams %d\n", accepted(only_two_streams));
}
