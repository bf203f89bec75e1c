// Where the rows of a dispatch go, once the counts are known: all ranks find a place for them, or all refuse.
#pragma once

#include <vector>

#include "session.h"

namespace ascend_moe {

// The rows that `source` sends to each expert of this rank.
inline const uint32_t *counts_from(const ExchangeLayout &layout, const ExchangeDispatch &call, uint32_t rank,
                                   uint32_t source) {
    const uint32_t first_expert = layout.granting ? 0 : rank * (layout.experts / layout.ranks);
    return call.matrix + uint64_t{source} * layout.counted + first_expert;
}

// Fills offsets [experts], where this rank's next row for each expert goes, and what of `call` tells what arrives here.
// counts [experts]: this rank's rows. With a matrix every rank derives the same from it. Granting, each rank derives
// what goes into its own window, tells the others, and waits for what they tell.
int derive_offsets(Session &session, ExchangeDispatch &call, Part part, const std::vector<uint32_t> &counts,
                   std::vector<uint64_t> &offsets);

} // namespace ascend_moe
