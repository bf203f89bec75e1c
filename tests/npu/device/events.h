// Events: points of a stream that other streams, and the host, wait for.
#pragma once

#include <memory>

#include "streams.h"

namespace emulated_npu {

class Event {
  public:
    // In a capture the event is one of the graph.
    void record(Stream &stream);
    // The stream waits; nothing if the event was never recorded.
    void wait(Stream &stream) const;
    bool query() const;
    // The host waits.
    void synchronize() const;
    // Between two events that the streams have reached. Raises `Refused` if one is missing.
    double milliseconds_until(const Event &later) const;

  private:
    struct Recording;
    std::shared_ptr<Recording> recording_;
};

// An event that stays set until it is reset on a stream, across replays: `ExternalEvent` of torch_npu.
class Flag {
  public:
    Flag();
    void record(Stream &stream);
    // The stream waits, and fails if nobody sets the flag.
    void wait(Stream &stream) const;
    void reset(Stream &stream);

  private:
    struct State;
    std::shared_ptr<State> state_;
};

// How long a stream waits for a flag before it fails.
void set_flag_patience(double seconds);

} // namespace emulated_npu
