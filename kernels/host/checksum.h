// Checksums of rows, for sessions that verify: a flipped bit, a torn row or a row of another epoch does not pass.
#pragma once

#include <cstdint>
#include <cstring>

namespace ascend_moe {

// Fletcher sums over 64-bit words in four lanes (rows are multiples of 32 bytes), seeded with the row's epoch and
// place.
inline uint64_t row_checksum(const uint8_t *row, uint64_t row_bytes, uint64_t epoch, uint64_t place) {
    constexpr uint64_t lanes = 4;
    uint64_t sums[lanes] = {epoch, place, ~epoch, ~place};
    uint64_t sums_of_sums[lanes] = {};
    for (uint64_t begin = 0; begin < row_bytes; begin += lanes * sizeof(uint64_t)) {
        uint64_t words[lanes];
        memcpy(words, row + begin, sizeof words);
        for (uint64_t lane = 0; lane < lanes; ++lane) {
            sums[lane] += words[lane];
            sums_of_sums[lane] += sums[lane];
        }
    }
    uint64_t check = 0;
    for (uint64_t lane = 0; lane < lanes; ++lane) {
        check = (check ^ sums[lane]) * 0x9e3779b97f4a7c15;
        check = (check ^ sums_of_sums[lane]) * 0xff51afd7ed558ccd;
    }
    return check;
}

} // namespace ascend_moe
