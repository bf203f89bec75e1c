// The steps of a call, as they go into the ring of a rank's trace. Without a ring a null pointer is looked at.
#pragma once

#include <cstdint>

#include "exchange.h"

namespace ascend_moe {

class StepTrace {
  public:
    explicit StepTrace(ExchangeTrace *ring) : ring_(ring) {}

    bool is_on() const { return ring_ != nullptr; }
    // Ends the step of this call before it.
    void begin_step(uint32_t step, uint64_t epoch) {
        if (ring_ != nullptr)
            add_step(step, epoch);
    }
    void end_call() {
        if (event_ != nullptr)
            end_step();
    }
    // What the step moves.
    void moves(uint32_t kind, uint64_t rows, uint64_t bytes) {
        if (event_ == nullptr)
            return;
        event_->kind = kind;
        event_->rows = rows;
        event_->bytes = bytes;
    }
    // `source` held the step up, and came after those that did so before.
    void was_held_up(uint32_t source, uint64_t held_up_ns) {
        if (event_ == nullptr || held_up_ns == 0)
            return;
        event_->waited_ns += held_up_ns;
        event_->waited_for = static_cast<int32_t>(source);
    }

  private:
    void add_step(uint32_t step, uint64_t epoch);
    void end_step();

    ExchangeTrace *ring_;
    ExchangeTraceEvent *event_ = nullptr;
};

// Writes down which layer the exchange of `epoch` is of; on any thread.
void trace_layer(ExchangeTrace &ring, uint64_t epoch, int32_t layer);

} // namespace ascend_moe
