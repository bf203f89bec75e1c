// What launches have found: on the device the first fault of those that nobody waits for, and the workspace, which
// begins with the verdict of the last. With what other ranks have told this one, it comes to the host by two copies.
#pragma once

#include <cstdint>
#include <cstring>

#include "../words.h"
#include "exchange_device.h"
#include "runtime.h"

namespace ascend_device {

class Verdicts {
  public:
    // `statuses`: the status lines of all ranks in the own window.
    Verdicts(uint64_t workspace_bytes, uint64_t statuses, uint32_t rank, uint32_t ranks)
        : statuses_(statuses), rank_(rank), ranks_(ranks), device_(EXCHANGE_LINE_BYTES + workspace_bytes),
          waited_(bytes()), fetched_(EXCHANGE_DEVICE_FETCHES * bytes()) {
        memset(fetched_.at(), 0, EXCHANGE_DEVICE_FETCHES * bytes());
    }
    ~Verdicts() {
        for (const aclrtStream stream : {fetching_, forgetting_})
            if (stream != nullptr)
                aclrtSynchronizeStream(stream);
    }
    Verdicts(const Verdicts &) = delete;
    Verdicts &operator=(const Verdicts &) = delete;

    uint64_t fault() const { return device_.address(); }
    uint64_t workspace() const { return device_.address(EXCHANGE_LINE_BYTES); }

    // Copies all of it, for the three below once the stream has been waited for.
    void copy(aclrtStream stream) { copy_to(waited_.at(), stream); }
    ascend_kernels::Verdict last() const { return at(waited_.at(last_line)); }
    ascend_kernels::Verdict kept_fault() const { return at(waited_.at()); }
    ascend_kernels::Verdict found() const { return judge(waited_.at()); }
    // From now on, in stream order, a fault is the first again.
    void forget_fault(aclrtStream stream) {
        forgetting_ = stream;
        copy_async(device_.at(), nothing(), EXCHANGE_LINE_BYTES, ACL_MEMCPY_HOST_TO_DEVICE, stream);
    }

    // The same copy for those who do not wait, into one of EXCHANGE_DEVICE_FETCHES places.
    void fetch(aclrtStream stream, uint32_t place) {
        fetching_ = stream;
        copy_to(fetched_.at(place * bytes()), stream);
    }
    ascend_kernels::Verdict fetched(uint32_t place) const { return judge(fetched_.at(place * bytes())); }

  private:
    static constexpr uint64_t last_line = EXCHANGE_LINE_BYTES;
    static constexpr uint64_t status_lines = 2 * EXCHANGE_LINE_BYTES;

    uint64_t bytes() const { return status_lines + uint64_t{ranks_} * EXCHANGE_LINE_BYTES; }

    void copy_to(uint8_t *to, aclrtStream stream) {
        copy_async(to, device_.at(), status_lines, ACL_MEMCPY_DEVICE_TO_HOST, stream);
        copy_async(to + status_lines, reinterpret_cast<const void *>(statuses_), bytes() - status_lines,
                   ACL_MEMCPY_DEVICE_TO_HOST, stream);
    }
    static ascend_kernels::Verdict at(const uint8_t *line) {
        ascend_kernels::Verdict verdict;
        memcpy(&verdict, line, sizeof verdict);
        return verdict;
    }
    // The first fault of the own launches; else what a rank has told, whose launch of the same step may have failed
    // after the own one went well; else no fault, and the epoch of the last launch.
    ascend_kernels::Verdict judge(const uint8_t *lines) const {
        using namespace ascend_kernels;
        if (const Verdict kept = at(lines); kept.result != EXCHANGE_OK)
            return kept;
        Verdict verdict = {};
        verdict.epoch = at(lines + last_line).epoch;
        for (uint32_t source = 0; source < ranks_ && verdict.result == EXCHANGE_OK; ++source) {
            uint64_t words[3];
            memcpy(words, lines + status_lines + uint64_t{source} * EXCHANGE_LINE_BYTES, sizeof words);
            verdict = Told(verdict, rank_, ranks_, source, words[0], words[status_value], words[status_region]);
        }
        return verdict;
    }
    // Never given back: a copy of it may still be on a stream when a session ends.
    static const uint8_t *nothing() {
        static const uint8_t *const line = [] {
            auto &memory = *new PinnedMemory(EXCHANGE_LINE_BYTES);
            memset(memory.at(), 0, EXCHANGE_LINE_BYTES);
            return memory.at();
        }();
        return line;
    }

    const uint64_t statuses_;
    const uint32_t rank_;
    const uint32_t ranks_;
    DeviceMemory device_;
    PinnedMemory waited_;
    PinnedMemory fetched_;
    // On which copies may still be under way.
    aclrtStream fetching_ = nullptr;
    aclrtStream forgetting_ = nullptr;
};

} // namespace ascend_device
