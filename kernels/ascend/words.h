// The words that ranks publish in windows, as kernels/host/window.h has them.
#pragma once

#include "arguments.h"

namespace ascend_kernels {

// A sequence word: the epoch in bits 63..16, a tag in bits 15..0.
__aicore__ inline uint64_t SequenceWord(uint64_t epoch, uint64_t tag) { return epoch << 16 | tag; }
__aicore__ inline uint64_t EpochOf(uint64_t word) { return word >> 16; }
__aicore__ inline uint32_t TagOf(uint64_t word) { return static_cast<uint32_t>(word & 0xffff); }

// A slot, or half of one: which lines its words take, and which rows.
struct Part {
    uint32_t slot, part;

    // From the beginning of the arrive or done region.
    __aicore__ inline uint64_t Lines(uint32_t ranks) const { return uint64_t(Index()) * ranks * EXCHANGE_LINE_BYTES; }
    __aicore__ inline uint32_t Index() const { return 2 * slot + (part == EXCHANGE_SECOND_HALF ? 1 : 0); }
    __aicore__ inline uint64_t FirstRow(const ExchangeLayout &layout) const {
        return part == EXCHANGE_SECOND_HALF ? layout.capacity / 2 : 0;
    }
    __aicore__ inline uint64_t Capacity(const ExchangeLayout &layout) const {
        return part == EXCHANGE_WHOLE ? layout.capacity : layout.capacity / 2;
    }
};

// A header unit in 8-byte words: sequence word; tokens, error; detail; bytes of the mailbox.
constexpr uint32_t header_tokens_error = 1;
constexpr uint32_t header_detail = 2;

// A status word: result in bits 63..56, culprit in 55..40, step in 39..32, the epoch's low half in 31..0.
__aicore__ inline uint64_t StatusWord(const Verdict &verdict) {
    return uint64_t(verdict.result) << 56 | uint64_t(verdict.culprit & 0xffff) << 40 |
           uint64_t(verdict.step & 0xff) << 32 | (verdict.epoch & 0xffffffff);
}
__aicore__ inline uint32_t StatusResult(uint64_t word) { return static_cast<uint32_t>(word >> 56); }
__aicore__ inline uint32_t StatusCulprit(uint64_t word) { return static_cast<uint32_t>(word >> 40 & 0xffff); }
__aicore__ inline uint32_t StatusStep(uint64_t word) { return static_cast<uint32_t>(word >> 32 & 0xff); }

// Whether a fault poisons the session, and has to be told to every rank.
__aicore__ inline bool Poisons(uint32_t result) { return result >= EXCHANGE_PEER_LOST && result != EXCHANGE_POISONED; }

// Of two findings the one that every rank would report: a lost peer before a mismatch before an input error, and of
// two alike the one about the lower rank.
__aicore__ inline uint32_t Severity(uint32_t result) {
    if (result == EXCHANGE_OK || result == EXCHANGE_INVALID_INPUT)
        return result;
    return result == EXCHANGE_MISMATCH ? 2 : 3;
}
// The same for the first words of two verdicts: result and culprit.
__aicore__ inline bool Outweighs(uint64_t one, uint64_t other) {
    const uint32_t severity = Severity(static_cast<uint32_t>(one));
    const uint32_t other_severity = Severity(static_cast<uint32_t>(other));
    return severity != other_severity ? severity > other_severity : severity != 0 && one >> 32 < other >> 32;
}

} // namespace ascend_kernels
