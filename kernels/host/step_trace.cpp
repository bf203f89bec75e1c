#include "step_trace.h"

#include "waiting.h"

namespace ascend_moe {
namespace {

// In the next place of the ring; experts may be named on one thread while another one dispatches.
ExchangeTraceEvent *add_event(ExchangeTrace &ring, uint32_t step, uint64_t epoch, int32_t layer) {
    const uint64_t number = __atomic_fetch_add(&ring.begun, 1, __ATOMIC_RELAXED);
    ExchangeTraceEvent *event = reinterpret_cast<ExchangeTraceEvent *>(&ring + 1) + number % ring.capacity;
    *event = {};
    event->begin_ns = now_ns();
    event->epoch = epoch;
    event->waited_for = -1;
    event->layer = layer;
    event->step = step;
    return event;
}

} // namespace

void StepTrace::add_step(uint32_t step, uint64_t epoch) {
    end_call();
    event_ = add_event(*ring_, step, epoch, -1);
}

void StepTrace::end_step() {
    if (event_->step != EXCHANGE_STEP_EXPERTS) // which go on after the call
        event_->end_ns = now_ns();
}

void trace_layer(ExchangeTrace &ring, uint64_t epoch, int32_t layer) {
    add_event(ring, EXCHANGE_STEP_NONE, epoch, layer);
}

} // namespace ascend_moe
