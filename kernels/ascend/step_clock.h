// The times of a launch's steps, as its core 0 leaves them where steps are traced.
#pragma once

#include "arguments.h"
#include "order.h"

namespace ascend_kernels {

// Of one launch, which loads and stores nothing for it before it ends, and touches nothing of it if nobody asked.
class StepClock {
  public:
    // Ends the step before it, and a wait that did not end within; one that has begun goes on.
    __aicore__ inline void Begin(uint32_t step) {
        if (steps_ == step_stamps || (steps_ > 0 && times_.steps[steps_ - 1] == step))
            return;
        EndWait();
        if (steps_ == 0)
            times_ = {};
        times_.began[steps_] = static_cast<uint64_t>(GetSystemCycle());
        times_.steps[steps_++] = static_cast<uint8_t>(step);
    }
    // A wait has begun, or has found that it must go on: for `missing`, and perhaps for others.
    __aicore__ inline void BeginWait() { waits_since_ = GetSystemCycle(); }
    __aicore__ inline void WaitFor(uint32_t missing) {
        waits_ = true;
        if (steps_ > 0 && steps_ <= step_waits)
            times_.waited_for[steps_ - 1] = missing + 1;
    }
    // What was waited for is there, and the next is waited for from now on.
    __aicore__ inline void EndWait() {
        if (!waits_)
            return;
        waits_ = false;
        const int64_t now = GetSystemCycle();
        if (steps_ > 0 && steps_ <= step_waits) {
            const uint64_t waited = times_.waited[steps_ - 1] + static_cast<uint64_t>(now - waits_since_);
            times_.waited[steps_ - 1] = static_cast<uint32_t>(Least(waited, most_waited));
        }
        waits_since_ = now;
    }
    __aicore__ inline StepTimes &times() { return times_; }

  private:
    static constexpr uint64_t most_waited = 0xffffffff;

    StepTimes times_; // once the first step has begun
    uint32_t steps_ = 0;
    int64_t waits_since_ = 0;
    bool waits_ = false;
};

} // namespace ascend_kernels
