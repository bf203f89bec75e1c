// What launches have found: on the device the first fault of those that nobody waits for, and the workspace, which
// begins with the verdict of the last; both come to the host by one copy.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "../arguments.h"
#include "runtime.h"

namespace ascend_device {

class Verdicts {
  public:
    explicit Verdicts(uint64_t workspace_bytes)
        : device_(EXCHANGE_LINE_BYTES + workspace_bytes), waited_(bytes), fetched_(bytes), none_(EXCHANGE_LINE_BYTES) {
        memset(fetched_.at(), 0, bytes);
        memset(none_.at(), 0, EXCHANGE_LINE_BYTES);
    }

    uint64_t fault() const { return device_.address(); }
    uint64_t workspace() const { return device_.address(EXCHANGE_LINE_BYTES); }

    // Copies both, for `kept_fault` and `last` once the stream has been waited for.
    void copy(aclrtStream stream) const { copy_to(waited_, stream); }
    ascend_kernels::Verdict kept_fault() const { return at(waited_, 0); }
    ascend_kernels::Verdict last() const { return at(waited_, EXCHANGE_LINE_BYTES); }
    // From now on, in stream order, a fault is the first again.
    void forget_fault(aclrtStream stream) const {
        copy_async(device_.at(), none_.at(), EXCHANGE_LINE_BYTES, ACL_MEMCPY_HOST_TO_DEVICE, stream);
    }

    // The same copy for those who do not wait. What they read may be of any time since: whether there was a fault, and
    // the epoch of some launch.
    void fetch(aclrtStream stream) const { copy_to(fetched_, stream); }
    bool fetched_fault() const { return static_cast<uint32_t>(fetched_word(0)) != EXCHANGE_OK; }
    uint64_t fetched_epoch() const {
        return fetched_word(EXCHANGE_LINE_BYTES + offsetof(ascend_kernels::Verdict, epoch));
    }

  private:
    static constexpr uint64_t bytes = 2 * EXCHANGE_LINE_BYTES;

    void copy_to(const PinnedMemory &to, aclrtStream stream) const {
        copy_async(to.at(), device_.at(), bytes, ACL_MEMCPY_DEVICE_TO_HOST, stream);
    }
    static ascend_kernels::Verdict at(const PinnedMemory &memory, uint64_t offset) {
        ascend_kernels::Verdict verdict;
        memcpy(&verdict, memory.at(offset), sizeof verdict);
        return verdict;
    }
    // Relaxed: an event of the stream orders it behind the copy, and a copy that goes on leaves words whole.
    uint64_t fetched_word(uint64_t offset) const {
        return __atomic_load_n(reinterpret_cast<const uint64_t *>(fetched_.at(offset)), __ATOMIC_RELAXED);
    }

    DeviceMemory device_;
    PinnedMemory waited_;
    PinnedMemory fetched_;
    PinnedMemory none_;
};

} // namespace ascend_device
