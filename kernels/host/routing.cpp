#include "routing.h"

namespace ascend_moe {
namespace {

InputCheck check_token(const ExchangeLayout &layout, const Routing &ids, uint64_t first) {
    for (uint64_t k = 0; k < layout.topk; ++k) {
        const int64_t id = ids[first + k];
        if (id < -1 || id >= static_cast<int64_t>(layout.experts))
            return {EXCHANGE_INPUT_EXPERT_ID, id};
        if (layout.distinct_topk && id >= 0)
            for (uint64_t earlier = 0; earlier < k; ++earlier)
                if (ids[first + earlier] == id)
                    return {EXCHANGE_INPUT_REPEATED_EXPERT, id};
    }
    return {EXCHANGE_INPUT_OK, 0};
}

} // namespace

InputCheck count_experts(const ExchangeLayout &layout, const Routing &ids, uint32_t tokens,
                         std::vector<uint32_t> &counts) {
    if (tokens > layout.max_tokens)
        return {EXCHANGE_INPUT_TOKENS, tokens};
    for (uint64_t token = 0; token < tokens; ++token) {
        const uint64_t first = token * layout.topk;
        if (const InputCheck check = check_token(layout, ids, first); check.error != EXCHANGE_INPUT_OK)
            return check;
        for (uint64_t k = 0; k < layout.topk; ++k)
            if (const int64_t id = ids[first + k]; id >= 0)
                ++counts[static_cast<uint64_t>(id)];
    }
    return {EXCHANGE_INPUT_OK, 0};
}

uint32_t count_chunks(const ExchangeLayout &layout, const Routing &ids, uint32_t tokens, uint32_t chunk_tokens,
                      uint32_t *rows, int64_t &detail) {
    std::vector<uint32_t> counts(layout.experts);
    const InputCheck check = count_experts(layout, ids, tokens, counts);
    detail = check.detail;
    if (check.error != EXCHANGE_INPUT_OK)
        return check.error;
    const uint32_t local_experts = layout.experts / layout.ranks;
    for (uint64_t token = 0; token < tokens; ++token)
        for (uint64_t k = 0; k < layout.topk; ++k)
            if (const int64_t id = ids[token * layout.topk + k]; id >= 0)
                ++rows[token / chunk_tokens * layout.ranks + static_cast<uint64_t>(id) / local_experts];
    return EXCHANGE_INPUT_OK;
}

} // namespace ascend_moe
