// The time of one core: of its scalar unit, and of each pipe when it is free again and when it has done everything.
//
// Pipes work in order; an instruction begins once its pipe is free and the scalar unit has issued it, keeps the pipe
// busy, and is done some latency after that. Latencies of one pipe overlap, as they do in hardware with transfers under
// way.
#pragma once

#include <array>
#include <cstdint>

#include "pipes.h"
#include "time_constants.h"

namespace ascend_model {

class CoreClock {
  public:
    void begin(double at);
    // Of the scalar unit.
    double now() const { return free_[pipe_s]; }
    void pass(double ns);

    // When the next instruction of `pipe`, issued now, begins.
    double start(Pipe pipe);
    // It keeps its pipe until `end`, and is done `latency` later. Returns when.
    double occupy(Pipe pipe, double start, double end, double latency);
    bool is_idle(Pipe pipe) const { return free_[pipe] <= now(); }

    // When everything issued to `pipe` is done.
    double done(Pipe pipe) const { return pipe == pipe_s ? now() : done_[pipe]; }
    void wait(Pipe pipe, double until);
    // All pipes; returns the time at which everything is done.
    double drain();

    // How long a pipe worked.
    const std::array<double, pipe_count> &busy() const { return busy_; }

  private:
    std::array<double, pipe_count> free_ = {};
    std::array<double, pipe_count> done_ = {};
    std::array<double, pipe_count> busy_ = {};
};

} // namespace ascend_model
