// Streams of the emulated NPU: what the host puts on a stream runs later, in the order of the stream, on its thread.
//
// How much later is drawn from a seed: work is held back until the host has made some more calls, or waits for it. A
// step that lacks a synchronisation or an event therefore reads old values with some seed.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace emulated_npu {

// Counts what was put on one stream, from 1.
using Sequence = uint64_t;

// The emulated NPU refuses a call; its message says why.
class Refused : public std::runtime_error {
  public:
    explicit Refused(const std::string &what) : std::runtime_error("emulated NPU: " + what) {}
};

// One thing to do on a stream, in a graph many times.
struct Work {
    virtual ~Work() = default;
    // replay: which replay of its graph this is, from 1; 0 outside of graphs.
    virtual void run(uint64_t replay) = 0;

    std::string name;
    uint64_t bytes = 0;                // that it reads and writes, for the counters
    std::vector<const void *> touches; // device memory
};

// Work that is a function.
struct FunctionWork final : Work {
    explicit FunctionWork(std::string called, std::function<void(uint64_t)> function, uint64_t moved = 0)
        : function_(std::move(function)) {
        name = std::move(called);
        bytes = moved;
    }
    void run(uint64_t replay) override { function_(replay); }

  private:
    std::function<void(uint64_t)> function_;
};

// What a stream waits for before it goes on. Asked while nothing else is scheduled.
class Condition {
  public:
    virtual ~Condition() = default;
    virtual bool holds() const = 0;
    // Somebody waits for it: what it depends on is not held back any longer. Returns whether it was until now.
    virtual bool demand() = 0;
    // How long it may take before the stream fails, and with which words; 0: as long as it takes.
    virtual double patience_s() const { return 0; }
    virtual std::string lateness() const { return ""; }
};

class Stream;

// Takes what is put on the streams that are captured.
class Recorder {
  public:
    virtual ~Recorder() = default;
    virtual void put(Stream &stream, std::shared_ptr<Work> work, std::shared_ptr<Condition> condition) = 0;
    // Returns the number of the event within the capture.
    virtual size_t record(Stream &stream) = 0;
    // The stream becomes part of the capture, if it is not yet.
    virtual void wait(Stream &stream, size_t event) = 0;
    // The pool of memory of the captured graph.
    virtual uint64_t pool() const = 0;
};

class Stream {
  public:
    explicit Stream(int64_t number) : number_(number) {}

    int64_t number() const { return number_; }
    // Work on a captured stream goes into the graph.
    void put(std::shared_ptr<Work> work, std::shared_ptr<Condition> condition = nullptr, uint64_t replay = 0);
    // Of what was put last.
    Sequence last() const;
    // How much was put, into graphs as well.
    uint64_t put_so_far() const { return put_so_far_; }
    bool done(Sequence sequence) const;
    // The host waits, and lets Python's other threads run meanwhile. Raises what work has failed with.
    void wait(Sequence sequence);
    void wait() { wait(last()); }
    // The same for so long at most. Returns whether the stream has come so far.
    bool wait_for(Sequence sequence, std::chrono::milliseconds most);
    // The same without a word about failures.
    void reach(Sequence sequence);

    // Of the capture that this stream is part of, or null.
    Recorder *recorder() const { return recorder_; }
    void set_recorder(Recorder *recorder) { recorder_ = recorder; }

    // What graphs capture of it is replayed on it too, in one order with everything else that is put on it.
    void stay_in_replays() { stays_in_replays_ = true; }
    bool stays_in_replays() const { return stays_in_replays_; }

  private:
    friend class Reached;

    struct Item {
        std::shared_ptr<Work> work;
        std::shared_ptr<Condition> condition;
        uint64_t replay;
        Sequence sequence;
        uint64_t due; // the call of the host from which on it is not held back
    };

    void run();
    void hold(std::unique_lock<std::mutex> &lock, const Item &item);
    void await(std::unique_lock<std::mutex> &lock, const Item &item);
    uint64_t draw(Sequence sequence) const;

    const int64_t number_;
    std::deque<Item> waiting_;
    std::atomic<uint64_t> put_so_far_ = 0;
    Sequence last_ = 0;
    Sequence completed_ = 0;
    Sequence released_ = 0; // up to here somebody waits
    bool started_ = false;
    Recorder *recorder_ = nullptr;
    bool stays_in_replays_ = false;
};

// That a stream has come so far.
class Reached final : public Condition {
  public:
    Reached(Stream &stream, Sequence sequence) : stream_(stream), sequence_(sequence) {}
    bool holds() const override { return stream_.completed_ >= sequence_; }
    bool demand() override;

  private:
    Stream &stream_;
    const Sequence sequence_;
};

// Streams that wait ask their conditions again.
void look_again();

// How late work runs: 0 at once; -1 not before somebody waits for it; n > 0 held back for a while drawn from n.
void set_seed(int64_t seed);

// The streams of this process: 0 is the default one, the next ones are given out in turn, as torch_npu has it. Those
// behind them have an owner each, as CANN makes them.
Stream &stream_at(int64_t number);
Stream &next_stream();
Stream &make_stream();
// Once it has done everything, another owner may have it.
void give_back_stream(Stream &stream);
void drain_streams();
// Also raises what work has failed with.
void wait_for_all_streams();

// What the calling thread works on.
Stream &current_stream();
Stream &exchange_current_stream(Stream &stream);

// What work has failed with, which every wait of the host raises until it is taken.
void raise_failure();
std::string take_failure();

} // namespace emulated_npu
