// Places in the ring of a rank's trace.
#pragma once

#include <cstdint>

#include "exchange.h"

namespace ascend_moe {

// The next one, with nothing but its epoch and step; experts may be named on one thread while another one dispatches.
inline ExchangeTraceEvent &next_event(ExchangeTrace &ring, uint32_t step, uint64_t epoch, uint64_t begin_ns) {
    const uint64_t number = __atomic_fetch_add(&ring.begun, 1, __ATOMIC_RELAXED);
    ExchangeTraceEvent &event = reinterpret_cast<ExchangeTraceEvent *>(&ring + 1)[number % ring.capacity];
    event = {};
    event.begin_ns = begin_ns;
    event.epoch = epoch;
    event.waited_for = -1;
    event.layer = -1;
    event.step = step;
    return event;
}

} // namespace ascend_moe
