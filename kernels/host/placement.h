// Placement: rows go from the caller straight to where their experts read them.
#pragma once

#include <vector>

#include "routing.h"
#include "session.h"

namespace ascend_moe {

// Writes every routed row, and notes its place in call.positions for combine. offsets [experts]: where this rank's next
// row for each expert goes.
void place_rows(Session &session, const ExchangeDispatch &call, const Routing &ids,
                const std::vector<uint64_t> &offsets);

// The checksum of a row as it lies in row `place` of a slot.
uint64_t placed_checksum(const Session &session, const uint8_t *row, float scale, uint64_t place);

} // namespace ascend_moe
