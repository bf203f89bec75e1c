// The clock of a launch's steps, in cycles that a test says.
#include "step_clock.h"

namespace {

int64_t cycle = 0;

} // namespace

int64_t AscendC::GetSystemCycle() { return cycle; }

// What a test lets happen at a cycle: a call of StepClock, by its place there, and what it is told.
struct ClockCall {
    int64_t cycle;
    uint32_t call, argument;
};

extern "C" [[gnu::visibility("default")]] void run_step_clock(const ClockCall *calls, uint32_t count,
                                                              ascend_kernels::StepTimes *times) {
    ascend_kernels::StepClock clock;
    for (uint32_t i = 0; i < count; ++i) {
        cycle = calls[i].cycle;
        switch (calls[i].call) {
        case 0:
            clock.Begin(calls[i].argument);
            break;
        case 1:
            clock.BeginWait();
            break;
        case 2:
            clock.WaitFor(calls[i].argument);
            break;
        default:
            clock.EndWait();
        }
    }
    *times = clock.times();
}
