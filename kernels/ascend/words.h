// The words that ranks publish in windows, as kernels/host/window.h has them.
#pragma once

#include "arguments.h"
#include "window_words.h"

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

// What a wait makes of a word.
enum class Seen { pending, ready, impossible };

// An earlier epoch's word has not been overwritten yet; any other that is not `expected` is nobody's.
__aicore__ inline Seen SeenOf(uint64_t word, uint64_t expected) {
    if (word == expected)
        return Seen::ready;
    return EpochOf(word) < EpochOf(expected) ? Seen::pending : Seen::impossible;
}

// A header unit in 8-byte words: sequence word; tokens, error; detail; bytes of the mailbox, their checksum.
constexpr uint32_t header_tokens_error = 1;
constexpr uint32_t header_detail = 2;
constexpr uint32_t header_block = 3;

template <class Words> __aicore__ inline window_words::Header HeaderOf(const Words &words) {
    const uint64_t tokens_error = words.GetValue(header_tokens_error);
    window_words::Header header;
    header.kind = TagOf(words.GetValue(0));
    header.tokens = static_cast<uint32_t>(tokens_error);
    header.error = static_cast<uint32_t>(tokens_error >> 32);
    header.detail = static_cast<int64_t>(words.GetValue(header_detail));
    header.block_bytes = static_cast<uint32_t>(words.GetValue(header_block));
    return header;
}

// In the unit of a line of `state`, behind its two words and their seal: not 0 if the steps of exchanges are timed.
constexpr uint32_t state_timed = 3;

// A status word: result in bits 63..56, culprit in 55..40, step in 39..32, the epoch's low half in 31..0.
__aicore__ inline uint64_t StatusWord(const Verdict &verdict) {
    return uint64_t(verdict.result) << 56 | uint64_t(verdict.culprit & 0xffff) << 40 |
           uint64_t(verdict.step & 0xff) << 32 | (verdict.epoch & 0xffffffff);
}
__aicore__ inline uint32_t StatusResult(uint64_t word) { return static_cast<uint32_t>(word >> 56); }
__aicore__ inline uint32_t StatusCulprit(uint64_t word) { return static_cast<uint32_t>(word >> 40 & 0xffff); }
__aicore__ inline uint32_t StatusStep(uint64_t word) { return static_cast<uint32_t>(word >> 32 & 0xff); }
// The word has the low half of an epoch that cannot be far from `own`.
__aicore__ inline uint64_t StatusEpoch(uint64_t word, uint64_t own) {
    return own + static_cast<uint64_t>(static_cast<int32_t>(static_cast<uint32_t>(word) - static_cast<uint32_t>(own)));
}
__aicore__ inline bool StatusIsPossible(uint64_t word, uint32_t ranks) {
    return window_words::status_is_possible(StatusResult(word), StatusCulprit(word), StatusStep(word), ranks);
}
// The words after it in its line, of a corruption: what was found, and its ExchangeRegion.
constexpr uint32_t status_value = 1;
constexpr uint32_t status_region = 2;

// What the status line of `source` tells `rank`, whose verdict without it is `own`: a failure that a peer pushed is
// reported as the peer found it, so that the real culprit is named everywhere.
__aicore__ inline Verdict Told(const Verdict &own, uint32_t rank, uint32_t ranks, uint32_t source, uint64_t word,
                               uint64_t value, uint64_t region) {
    Verdict told = own;
    if (word == 0)
        return told;
    const uint32_t result = StatusResult(word), culprit = StatusCulprit(word);
    const bool is_corruption = result == EXCHANGE_CORRUPTION;
    const bool is_explained = region > EXCHANGE_REGION_NONE && region <= EXCHANGE_REGION_GRANTS;
    if (!StatusIsPossible(word, ranks) || (is_corruption && !is_explained)) {
        told.result = EXCHANGE_CORRUPTION;
        told.culprit = source;
        told.detail = static_cast<int64_t>(word);
        told.region = EXCHANGE_REGION_STATUS;
        return told;
    }
    if (result == EXCHANGE_PEER_CLOSED)
        return told;
    told.culprit = culprit;
    told.cause = result;
    if (culprit == rank && !is_corruption) {
        told.result = EXCHANGE_POISONED;
        return told;
    }
    told.result = result;
    if (is_corruption) {
        told.cause = 0;
        told.detail = static_cast<int64_t>(value);
        told.region = static_cast<uint32_t>(region);
    }
    // What stands in the own line is what the host beside a kernel saw during its wait.
    if (source == rank)
        return told;
    told.step = StatusStep(word);
    told.epoch = StatusEpoch(word, own.epoch);
    return told;
}

// Whether a fault poisons the session, and has to be told to every rank.
__aicore__ inline bool Poisons(uint32_t result) { return result >= EXCHANGE_PEER_LOST && result != EXCHANGE_POISONED; }

// Of two findings the one that every rank would report: a lost peer before a mismatch before too many rows before an
// input error, in the order of the results, and of two alike the one about the lower rank.
__aicore__ inline uint32_t Severity(uint32_t result) { return Least(result, uint32_t(EXCHANGE_PEER_LOST)); }
// The same for the first words of two verdicts: result and culprit.
__aicore__ inline bool Outweighs(uint64_t one, uint64_t other) {
    const uint32_t severity = Severity(static_cast<uint32_t>(one));
    const uint32_t other_severity = Severity(static_cast<uint32_t>(other));
    return severity != other_severity ? severity > other_severity : severity != 0 && one >> 32 < other >> 32;
}

} // namespace ascend_kernels
