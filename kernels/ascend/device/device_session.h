// A rank's open exchange on its device: what launches need, how their verdicts come back, how failures are told.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "../arguments.h"
#include "announce.h"
#include "exchange_device.h"
#include "launch.h"
#include "runtime.h"
#include "step_ring.h"
#include "verdicts.h"
#include "watcher.h"

namespace ascend_device {

// Lets other threads run Python while this one waits, and asks for signals in between.
class Released {
  public:
    explicit Released(const ExchangeInterpreter &interpreter) : interpreter_(interpreter) {
        if (interpreter_.release != nullptr)
            released_ = interpreter_.release();
    }
    ~Released() {
        if (interpreter_.acquire != nullptr)
            interpreter_.acquire(released_);
    }
    Released(const Released &) = delete;
    Released &operator=(const Released &) = delete;

    bool signal_wants_to_end();

  private:
    const ExchangeInterpreter &interpreter_;
    void *released_ = nullptr;
};

// Bytes on the device, and where they go on the host.
struct Piece {
    void *to;
    uint64_t from;
    uint64_t bytes; // at least one
};

class DeviceSession {
  public:
    // On the device that the calling thread uses.
    DeviceSession(ExchangeSession &session, uint32_t cores);
    ~DeviceSession();
    DeviceSession(const DeviceSession &) = delete;
    DeviceSession &operator=(const DeviceSession &) = delete;

    void use_stream(aclrtStream stream, bool deferred);
    // Whether a call only puts its launch on the stream.
    bool defers() const { return deferred_ || is_captured(stream_); }
    aclrtStream stream() const { return stream_; }

    // Calls that nobody waits for, to be launched by `put`.
    ExchangeLaunch ready_dispatch(const ExchangeDispatch &call, uint64_t most_rows);
    ExchangeLaunch ready_combine(const ExchangeCombine &call, bool only_meet);

    ascend_kernels::Verdict dispatch(const ExchangeDispatch &call);
    ascend_kernels::Verdict combine(const ExchangeCombine &call, bool only_meet);
    ascend_kernels::Verdict announce(uint32_t kind, const uint8_t *block, uint32_t bytes, uint32_t tokens,
                                     uint32_t error, int64_t detail);
    // Waits. The first fault of launches that nobody waited for, since the last look, or what another rank has told;
    // else only an epoch.
    ascend_kernels::Verdict check();
    // The same of what a fetch has brought.
    ascend_kernels::Verdict fetched(uint32_t place);
    void forget_fault() { verdicts_.forget_fault(stream_); }
    void fetch_verdicts(aclrtStream stream, uint32_t place);

    // Waits for the device. From now on the steps of launches are written into `trace`; null: no more.
    void trace(ExchangeTrace *trace);

    // Copies to the host what earlier work on the stream has written on the device.
    void fetch(void *to, uint64_t from, uint64_t bytes);
    // Several, with one wait.
    void fetch(const std::vector<Piece> &pieces);
    uint64_t own(uint64_t offset) const { return window_of(session_.rank) + offset; }

    // The first peer whose process ended without closing, if any.
    std::optional<uint32_t> dead_peer() const;
    // Whether the loss of `peer` is one that the watcher saw and that no call has reported yet.
    bool reports_loss_of(uint32_t peer);
    // Tells every rank `word`, and what explains it, or what this one has said before; once. From any thread.
    void tell(uint64_t word, uint64_t value = 0, uint64_t region = 0);

  private:
    uint64_t window_of(uint32_t rank) const { return reinterpret_cast<uint64_t>(session_.windows[rank]); }
    uint64_t own_status(uint32_t source) const {
        return own(session_.layout->status + uint64_t{source} * EXCHANGE_LINE_BYTES);
    }
    ascend_kernels::KernelArguments common() const;
    ascend_kernels::DispatchArguments arguments_of(const ExchangeDispatch &call) const;
    ascend_kernels::CombineArguments arguments_of(const ExchangeCombine &call, bool only_meet) const;
    std::vector<uint32_t> count_routed(const ExchangeDispatch &call);
    uint64_t use_segments(const std::vector<uint64_t> &segments);
    ascend_kernels::Verdict launch_and_wait(const ExchangeLaunch &launch);
    ascend_kernels::Verdict settle(const ascend_kernels::Verdict &found);
    void copy_verdicts_and_wait();
    void wait();
    void write_down_steps(uint32_t place, const ascend_kernels::Verdict &found);
    void set_clock();
    void note_ended(uint32_t peer);
    uint64_t read_status(uint32_t source);
    uint64_t keep_status(uint64_t word);

    ExchangeSession &session_;
    const int32_t device_;
    const uint32_t cores_;
    uint32_t cores_of_stream_ = 0; // at most cores_: a launch waits for all of its own at once
    DeviceMemory windows_;
    DeviceMemory ends_;
    DeviceMemory mailbox_;
    DeviceMemory segments_;
    PinnedMemory staging_;
    const uint64_t staging_bytes_;
    StepRing steps_;
    DeviceClock clock_;
    uint64_t clock_asked_ns_ = 0;
    Verdicts verdicts_; // after what is fetched with them
    aclrtStream stream_ = nullptr;
    bool deferred_ = false;
    // By positions: how often each token of a prefill dispatch was routed, for the segments of its combine.
    std::unordered_map<const void *, std::vector<uint32_t>> routed_;

    // What does not wait for the stream of the calls: the watcher, and the end.
    std::mutex beside_;
    Stream beside_stream_;
    PinnedMemory beside_word_;
    bool told_ = false;
    bool loss_reported_ = false;
    std::atomic<int64_t> dead_{-1};
    std::vector<int32_t> pidfds_;
    std::optional<Watcher> watcher_;
};

} // namespace ascend_device
