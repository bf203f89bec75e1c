#include "events.h"

#include <atomic>
#include <chrono>

#include "graphs.h"

namespace emulated_npu {
namespace {

std::atomic<double> flag_patience_s = 60.0;

std::shared_ptr<Work> nothing(const char *name) {
    return std::make_shared<FunctionWork>(name, [](uint64_t) {});
}

} // namespace

struct Event::Recording {
    Stream *stream;
    Sequence sequence;
    Recorder *recorder; // of the capture that it belongs to, or null
    size_t number;      // within the capture
    std::chrono::steady_clock::time_point time;
};

void Event::record(Stream &stream) {
    auto recording = std::make_shared<Recording>();
    recording->stream = &stream;
    recording->recorder = stream.recorder();
    if (recording->recorder != nullptr) {
        recording->number = recording->recorder->record(stream);
    } else {
        stream.put(std::make_shared<FunctionWork>(
            "event recorded", [recording](uint64_t) { recording->time = std::chrono::steady_clock::now(); }));
        recording->sequence = stream.last();
    }
    recording_ = std::move(recording);
}

void Event::wait(Stream &stream) const {
    if (!recording_)
        return;
    if (recording_->recorder != nullptr) {
        if (!is_capturing(recording_->recorder))
            throw Refused("a stream waits for an event that was recorded in a capture which has ended");
        recording_->recorder->wait(stream, recording_->number);
        return;
    }
    if (stream.recorder() != nullptr)
        throw Refused("a captured stream waits for an event that was recorded outside of the capture");
    if (recording_->stream != &stream)
        stream.put(nothing("event awaited"), std::make_shared<Reached>(*recording_->stream, recording_->sequence));
}

bool Event::query() const {
    refuse_in_capture("Event.query");
    return !recording_ || recording_->recorder != nullptr || recording_->stream->done(recording_->sequence);
}

void Event::synchronize() const {
    refuse_in_capture("Event.synchronize");
    if (!recording_)
        return;
    if (recording_->recorder != nullptr)
        throw Refused("the host waits for an event that was recorded in a capture");
    recording_->stream->wait(recording_->sequence);
}

double Event::milliseconds_until(const Event &later) const {
    if (!recording_ || !later.recording_ || !query() || !later.query())
        throw Refused("elapsed_time needs two events that were recorded and reached");
    return std::chrono::duration<double, std::milli>(later.recording_->time - recording_->time).count();
}

struct Flag::State final : Condition {
    bool holds() const override { return set; }
    bool demand() override { return setter != nullptr && Reached(*setter, sequence).demand(); }
    double patience_s() const override { return flag_patience_s; }
    std::string lateness() const override { return "a stream waits for an NPUGraph.update that nobody makes"; }

    std::atomic<bool> set = false;
    std::atomic<Stream *> setter = nullptr;
    std::atomic<Sequence> sequence = 0;
};

Flag::Flag() : state_(std::make_shared<State>()) {}

void Flag::record(Stream &stream) {
    stream.put(std::make_shared<FunctionWork>("event recorded", [state = state_](uint64_t) { state->set = true; }));
    state_->sequence = stream.last();
    state_->setter = &stream;
    look_again(); // whoever waits for the flag may not have known what it depends on
}

void Flag::wait(Stream &stream) const { stream.put(nothing("event awaited"), state_); }

void Flag::reset(Stream &stream) {
    stream.put(std::make_shared<FunctionWork>("event reset", [state = state_](uint64_t) { state->set = false; }));
}

void set_flag_patience(double seconds) { flag_patience_s = seconds; }

} // namespace emulated_npu
