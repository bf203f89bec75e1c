// Checksums of mailboxes, and of rows for sessions that verify: a flipped bit, a torn row or a row of another epoch
// does not pass.
#pragma once

#include <cstdint>
#include <cstring>

namespace ascend_moe {

// Fletcher sums over 64-bit words in four lanes, seeded with the row's epoch and place. A last block that is not full,
// as int8 rows may have one, counts as filled up with zeros.
inline uint64_t row_checksum(const uint8_t *row, uint64_t row_bytes, uint64_t epoch, uint64_t place) {
    constexpr uint64_t lanes = 4;
    uint64_t sums[lanes] = {epoch, place, ~epoch, ~place};
    uint64_t sums_of_sums[lanes] = {};
    uint64_t words[lanes];
    const auto add_words = [&] {
        for (uint64_t lane = 0; lane < lanes; ++lane) {
            sums[lane] += words[lane];
            sums_of_sums[lane] += sums[lane];
        }
    };
    const uint64_t rest = row_bytes % sizeof words;
    const uint8_t *const full_end = row + row_bytes - rest;
    for (; row < full_end; row += sizeof words) {
        memcpy(words, row, sizeof words);
        add_words();
    }
    if (rest > 0) {
        memset(words, 0, sizeof words);
        memcpy(words, row, rest);
        add_words();
    }
    uint64_t check = 0;
    for (uint64_t lane = 0; lane < lanes; ++lane) {
        check = (check ^ sums[lane]) * 0x9e3779b97f4a7c15;
        check = (check ^ sums_of_sums[lane]) * 0xff51afd7ed558ccd;
    }
    return check;
}

// Of what a mailbox holds, for the header that announces it.
inline uint32_t block_checksum(const uint8_t *block, uint64_t bytes) {
    const uint64_t check = row_checksum(block, bytes, 0, bytes);
    return static_cast<uint32_t>(check ^ check >> 32);
}

} // namespace ascend_moe
