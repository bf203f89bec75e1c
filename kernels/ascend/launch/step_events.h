// Host code: the events of a trace that the times of a launch's steps are.
#pragma once

#include <cstdint>

#include "../../host/trace_ring.h"
#include "../arguments.h"

namespace ascend_kernels {

// Of a dispatch and its combine.
constexpr uint32_t steps_of_exchange = 7;

// `ns_of(cycle)` is a time of CLOCK_MONOTONIC.
template <class NsOf>
void AddEvents(const StepTimes &times, NsOf ns_of, const ExchangeLayout &layout, ExchangeTrace &ring) {
    for (uint32_t i = 0; i + 1 < step_stamps && times.began[i + 1] != 0; ++i) {
        const uint32_t step = times.steps[i];
        ExchangeTraceEvent &event = ascend_moe::next_event(ring, step, times.epoch, ns_of(times.began[i]));
        // Experts go on after the launch.
        event.end_ns = step == EXCHANGE_STEP_EXPERTS ? 0 : ns_of(times.began[i + 1]);
        event.kind = times.kind;
        event.layer = static_cast<int32_t>(times.layer) - 1;
        if (i < step_waits && times.waited[i] > 0) {
            event.waited_ns = uint64_t{times.waited[i]} * cycle_ns;
            event.waited_for = static_cast<int32_t>(times.waited_for[i]) - 1;
        }
        if (step == EXCHANGE_STEP_ANNOUNCE)
            event.bytes = uint64_t{layout.ranks} *
                          (times.kind == EXCHANGE_PLAN ? uint32_t{EXCHANGE_UNIT_BYTES} : RecordBytes(layout));
        else if (step == EXCHANGE_STEP_PLACE)
            event.rows = times.placed;
        else if (step == EXCHANGE_STEP_ARRIVALS || step == EXCHANGE_STEP_EXPERTS)
            event.rows = times.received;
        event.bytes += event.rows * layout.row_bytes;
    }
}

} // namespace ascend_kernels
