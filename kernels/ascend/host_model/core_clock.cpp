#include "core_clock.h"

#include <algorithm>

namespace ascend_model {

TimeConstants times;

void CoreClock::begin(double at) {
    free_.fill(at);
    done_.fill(at);
    busy_.fill(0);
}

void CoreClock::pass(double ns) {
    free_[pipe_s] += ns;
    busy_[pipe_s] += ns;
}

double CoreClock::start(Pipe pipe) {
    pass(times.issue);
    return std::max(free_[pipe], now());
}

double CoreClock::occupy(Pipe pipe, double start, double end, double latency) {
    busy_[pipe] += end - start;
    free_[pipe] = end;
    done_[pipe] = std::max(done_[pipe], end + latency);
    return end + latency;
}

void CoreClock::wait(Pipe pipe, double until) { free_[pipe] = std::max(free_[pipe], until); }

double CoreClock::drain() {
    double last = now();
    for (uint32_t pipe = pipe_v; pipe < pipe_count; ++pipe)
        last = std::max(last, done_[pipe]);
    free_.fill(last);
    return last;
}

} // namespace ascend_model
