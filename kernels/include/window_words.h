// What words of a window can say, for host and Ascend kernels alike: anything else was not written by their owner.
#ifndef ASCEND_MOE_WINDOW_WORDS_H
#define ASCEND_MOE_WINDOW_WORDS_H

#include "exchange.h"

// For host compilers.
#ifndef __aicore__
#define __aicore__
#endif

namespace window_words {

// The third word of a line of `state`, made of the two before it.
__aicore__ inline uint64_t state_seal(uint64_t first, uint64_t second) {
    return ((first ^ 0x9e3779b97f4a7c15) * 0xff51afd7ed558ccd ^ second) * 0xc4ceb9fe1a85ec53;
}

// Fields of a status word that is not 0. Only what poisons a session is told, and never that it was poisoned before.
__aicore__ inline bool status_is_possible(uint32_t result, uint32_t culprit, uint32_t step, uint32_t ranks) {
    const bool is_told = result >= EXCHANGE_PEER_LOST && result <= EXCHANGE_CORRUPTION && result != EXCHANGE_POISONED;
    return is_told && culprit < ranks && step <= EXCHANGE_STEP_VERIFY;
}

struct Header {
    uint32_t kind, tokens, error, block_bytes;
    int64_t detail;
};

// The first field that contradicts the others or the layout, in `value`; false if none does.
__aicore__ inline bool header_is_possible(const ExchangeLayout &layout, const Header &header, uint64_t &value) {
    const bool is_plan = header.kind == EXCHANGE_PLAN;
    value = header.kind;
    if (header.kind < EXCHANGE_DECODE || header.kind > EXCHANGE_PLAN)
        return false;
    value = header.error;
    if (header.error > EXCHANGE_INPUT_REPEATED_EXPERT)
        return false;
    value = header.block_bytes;
    const bool is_refusal = header.error == EXCHANGE_INPUT_ARGUMENT;
    const uint64_t most_bytes = is_refusal ? EXCHANGE_REFUSAL_BYTES : is_plan ? layout.mailbox_bytes : 0;
    if (header.block_bytes > most_bytes)
        return false;
    value = header.tokens;
    const bool has_too_many = header.error == EXCHANGE_INPUT_TOKENS;
    if ((header.tokens > layout.max_tokens) != has_too_many)
        return false;
    value = static_cast<uint64_t>(header.detail);
    const int64_t detail = header.detail, experts = layout.experts;
    switch (header.error) {
    case EXCHANGE_INPUT_ARGUMENT:
        return detail > 0 && detail == header.block_bytes;
    case EXCHANGE_INPUT_TOKENS:
        return detail == header.tokens;
    case EXCHANGE_INPUT_EXPERT_ID:
        return detail < -1 || detail >= experts;
    case EXCHANGE_INPUT_REPEATED_EXPERT:
        return layout.distinct_topk != 0 && detail >= 0 && detail < experts;
    default: // the sum of the counts
        return detail >= 0 && detail <= (is_plan ? 0 : static_cast<int64_t>(header.tokens) * layout.topk);
    }
}

// Of a done word of the epoch that is waited for: whoever waits has pushed `rendezvous`, and a peer may be one ahead.
__aicore__ inline bool rendezvous_is_possible(uint64_t seen, uint64_t rendezvous) {
    return seen >= 1 && seen <= rendezvous + 1;
}

} // namespace window_words

#endif
