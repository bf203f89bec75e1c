#include "step_trace.h"

#include "trace_ring.h"
#include "waiting.h"

namespace ascend_moe {

void StepTrace::add_step(uint32_t step, uint64_t epoch) {
    end_call();
    event_ = &next_event(*ring_, step, epoch, now_ns());
}

void StepTrace::end_step() {
    if (event_->step != EXCHANGE_STEP_EXPERTS) // which go on after the call
        event_->end_ns = now_ns();
}

void trace_layer(ExchangeTrace &ring, uint64_t epoch, int32_t layer) {
    next_event(ring, EXCHANGE_STEP_NONE, epoch, now_ns()).layer = layer;
}

} // namespace ascend_moe
