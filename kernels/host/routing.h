// Expert ids as the caller gives them, checked and counted.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "exchange.h"

namespace ascend_moe {

struct InputCheck {
    uint32_t error; // ExchangeInputError
    int64_t detail;
};

// Row-major [tokens, topk] ids of 4 or 8 bytes.
class Routing {
  public:
    Routing(const void *ids, uint32_t ids_bytes) : ids_(ids), wide_(ids_bytes == 8) {}
    int64_t operator[](uint64_t index) const {
        return wide_ ? static_cast<const int64_t *>(ids_)[index] : static_cast<const int32_t *>(ids_)[index];
    }

  private:
    const void *ids_;
    bool wide_;
};

// Counts the ids of each expert into `counts` [experts]; -1 is skipped.
InputCheck count_experts(const ExchangeLayout &layout, const Routing &ids, uint32_t tokens,
                         std::vector<uint32_t> &counts);

// What exchange_count_chunks does, with ids in host memory.
uint32_t count_chunks(const ExchangeLayout &layout, const Routing &ids, uint32_t tokens, uint32_t chunk_tokens,
                      uint32_t *rows, int64_t &detail);

// Keeps the weights of a dispatch for its combine, if the caller wants that.
inline void keep_weights(const ExchangeLayout &layout, const ExchangeDispatch &call) {
    if (call.weights != nullptr)
        memcpy(call.kept_weights, call.weights, uint64_t{call.tokens} * layout.topk * sizeof(float));
}

} // namespace ascend_moe
