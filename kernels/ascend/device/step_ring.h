// The times of steps that launches leave on the device, and the events that the host makes of them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "../arguments.h"
#include "../launch/step_events.h"
#include "exchange_device.h"
#include "runtime.h"

namespace ascend_device {

// What the cycles of a device are in CLOCK_MONOTONIC. The two drift apart: it is to be set again every second or so.
class DeviceClock {
  public:
    // `cycle` was counted between two times of the host. What would say less than what is known is passed over.
    void set(uint64_t cycle, uint64_t before_ns, uint64_t after_ns) {
        const uint64_t width_ns = after_ns - before_ns;
        if (is_set_ && width_ns > width_ns_ + (after_ns - ns_) / drift)
            return;
        is_set_ = true;
        cycle_ = cycle;
        ns_ = before_ns + width_ns / 2;
        width_ns_ = width_ns;
    }
    uint64_t ns_of(uint64_t cycle) const { return ns_ + (cycle - cycle_) * ascend_kernels::cycle_ns; }

  private:
    static constexpr uint64_t drift = 10'000; // 100 parts in a million, more than quartz does

    bool is_set_ = false;
    uint64_t cycle_ = 0;
    uint64_t ns_ = 0;
    uint64_t width_ns_ = 0;
};

class StepRing {
  public:
    StepRing() : device_(ascend_kernels::step_bytes + EXCHANGE_LINE_BYTES) {}

    // KernelArguments::steps.
    uint64_t of_dispatches() const { return device_.address(); }
    uint64_t of_combines() const { return device_.address(sizeof(ascend_kernels::StepTimes)); }
    // A line for a time outside of steps, and a stream of its own for who stores and reads that.
    uint64_t stamp() const { return device_.address(ascend_kernels::step_bytes); }
    aclrtStream stamps() const { return host_->stream.get(); }
    uint64_t read_stamp() const {
        uint8_t *place = at(places);
        copy_async(place, device_.at(ascend_kernels::step_bytes), sizeof(uint64_t), ACL_MEMCPY_DEVICE_TO_HOST,
                   stamps());
        synchronise(stamps());
        uint64_t cycle;
        memcpy(&cycle, place, sizeof cycle);
        return cycle;
    }

    // Forgets what launches have left; none runs, and the exchanges up to `epoch` are over.
    void begin(uint64_t epoch) {
        require(aclrtMemset(device_.at(), device_.bytes(), 0, device_.bytes()), "aclrtMemset");
        if (!host_)
            host_.emplace();
        memset(host_->copies.at(), 0, places * ascend_kernels::step_bytes);
        read_.assign(2 * ascend_kernels::step_epochs, 0);
        newest_ = epoch;
    }

    // Puts a copy on `stream`: to one of the places of verdicts, or where `waited` is for those who wait for it.
    static constexpr uint32_t waited = EXCHANGE_DEVICE_FETCHES;
    void fetch(aclrtStream stream, uint32_t place) {
        copy_async(at(place), device_.at(), ascend_kernels::step_bytes, ACL_MEMCPY_DEVICE_TO_HOST, stream);
    }
    // Writes down what is new in the copy.
    void write_down(uint32_t place, const DeviceClock &clock, const ExchangeLayout &layout, ExchangeTrace &ring) {
        std::vector<ascend_kernels::StepTimes> launches;
        for (uint32_t i = 0; i < read_.size(); ++i) {
            ascend_kernels::StepTimes times;
            const uint8_t *from = at(place) + i * sizeof times;
            memcpy(times.began, from + offsetof(ascend_kernels::StepTimes, began), sizeof times.began[0]);
            // Nothing, or what another copy had, for no launch begins with another one.
            if (times.began[0] <= read_[i])
                continue;
            memcpy(&times, from, sizeof times);
            // Still being stored.
            if (times.seal != SealOf(times))
                continue;
            read_[i] = times.began[0];
            launches.push_back(times);
        }
        std::sort(launches.begin(), launches.end(),
                  [](const auto &one, const auto &other) { return one.began[0] < other.began[0]; });
        const auto ns_of = [&clock](uint64_t cycle) { return clock.ns_of(cycle); };
        uint64_t newest = newest_;
        for (const ascend_kernels::StepTimes &times : launches) {
            AddEvents(times, ns_of, layout, ring);
            newest = std::max(newest, times.epoch);
        }
        if (newest - newest_ > ascend_kernels::step_epochs)
            ring.lost += (newest - newest_ - ascend_kernels::step_epochs) * ascend_kernels::steps_of_exchange;
        newest_ = newest;
    }

  private:
    static constexpr uint32_t places = EXCHANGE_DEVICE_FETCHES + 1;

    struct Host {
        PinnedMemory copies = PinnedMemory(places * ascend_kernels::step_bytes + EXCHANGE_LINE_BYTES);
        Stream stream;
    };

    uint8_t *at(uint32_t place) const { return host_->copies.at(place * ascend_kernels::step_bytes); }

    DeviceMemory device_;
    std::optional<Host> host_;   // since steps were asked for first
    std::vector<uint64_t> read_; // the begin of the launch that was read there last
    uint64_t newest_ = 0;
};

} // namespace ascend_device
