// Where arguments wait for their launch: a block of page-locked memory, its copy on the device, and where the verdict
// comes back to. Blocks of captured launches are theirs for ever: a replay copies and reports again.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "../arguments.h"
#include "launch.h"
#include "runtime.h"

namespace ascend_device {

// Rounded up to lines.
constexpr uint64_t lines(uint64_t bytes) {
    return (bytes + EXCHANGE_LINE_BYTES - 1) / EXCHANGE_LINE_BYTES * EXCHANGE_LINE_BYTES;
}

class Blocks;

struct Block {
    Blocks *owner;
    uint32_t index;
    Kernel kernel;
    uint32_t cores;
    uint64_t bytes; // of the arguments, and what lies behind them
    enum State { free, taken, launched, captured } state;
};

class Blocks {
  public:
    // `extra` bytes behind the arguments of each of `count` blocks; verdicts are fetched from `workspace`.
    Blocks(uint32_t count, uint64_t extra, uint64_t workspace)
        : block_bytes_(lines(largest_arguments) + lines(extra)), workspace_(workspace), host_(count * block_bytes_),
          device_(count * block_bytes_), verdicts_(count * EXCHANGE_LINE_BYTES), blocks_(count) {
        memset(verdicts_.at(), 0, count * EXCHANGE_LINE_BYTES);
        for (uint32_t index = 0; index < count; ++index)
            blocks_[index] = {this, index, dispatch_kernel, 1, 0, Block::free};
    }

    Block &take() {
        const std::lock_guard lock(mutex_);
        for (uint32_t turn = 0; turn < blocks_.size(); ++turn) {
            next_ = (next_ + 1) % static_cast<uint32_t>(blocks_.size());
            if (Block &block = blocks_[next_]; block.state == Block::free) {
                block.state = Block::taken;
                return block;
            }
        }
        throw std::runtime_error("all " + std::to_string(blocks_.size()) +
                                 " launches that an exchange has memory for are captured; capture fewer batch sizes "
                                 "(--cuda-graph-bs)");
    }
    void give_back(Block &block) {
        const std::lock_guard lock(mutex_);
        if (block.state != Block::captured)
            block.state = Block::free;
    }

    uint8_t *arguments(const Block &block) const { return host_.at(block.index * block_bytes_); }
    uint64_t extra_address(const Block &block) const {
        return device_.address(block.index * block_bytes_ + lines(largest_arguments));
    }
    uint8_t *extra(const Block &block) const { return arguments(block) + lines(largest_arguments); }
    uint64_t extra_offset() const { return lines(largest_arguments); }

    // Only puts work on the stream.
    void launch(Block &block, aclrtStream stream) {
        {
            const bool captured = is_captured(stream);
            const std::lock_guard lock(mutex_);
            block.state = captured ? Block::captured : Block::launched;
        }
        const uint64_t offset = block.index * block_bytes_;
        copy_async(device_.at(offset), host_.at(offset), block.bytes, ACL_MEMCPY_HOST_TO_DEVICE, stream);
        ascend_device::launch(block.kernel, block.cores, stream, device_.address(offset));
        copy_async(verdicts_.at(block.index * EXCHANGE_LINE_BYTES), reinterpret_cast<const void *>(workspace_),
                   EXCHANGE_LINE_BYTES, ACL_MEMCPY_DEVICE_TO_HOST, stream);
    }

    // The verdict of a launch that has ended.
    ascend_kernels::Verdict verdict(const Block &block) const {
        ascend_kernels::Verdict verdict;
        memcpy(&verdict, verdicts_.at(block.index * EXCHANGE_LINE_BYTES), sizeof verdict);
        return verdict;
    }
    // Of everything launched since the last call, which has ended: the verdict that the others follow from. A poisoned
    // session follows from what poisoned it; of others the lowest epoch comes first, and in it the earlier step.
    // Without a fault: the verdict of the last.
    ascend_kernels::Verdict first_fault() {
        const std::lock_guard lock(mutex_);
        ascend_kernels::Verdict first = {};
        for (Block &block : blocks_) {
            if (block.state != Block::launched && block.state != Block::captured)
                continue;
            const ascend_kernels::Verdict found = verdict(block);
            if (found.result != EXCHANGE_OK && (first.result == EXCHANGE_OK || order(found) < order(first)))
                first = found;
            else if (first.result == EXCHANGE_OK && order(first) < order(found))
                first = found;
            memset(verdicts_.at(block.index * EXCHANGE_LINE_BYTES), 0, EXCHANGE_LINE_BYTES);
            if (block.state == Block::launched)
                block.state = Block::free;
        }
        return first;
    }

  private:
    static std::tuple<bool, uint64_t, uint32_t> order(const ascend_kernels::Verdict &verdict) {
        return {verdict.result == EXCHANGE_POISONED, verdict.epoch, verdict.step};
    }

    static constexpr uint64_t largest_arguments = sizeof(ascend_kernels::DispatchArguments);

    const uint64_t block_bytes_;
    const uint64_t workspace_;
    PinnedMemory host_;
    DeviceMemory device_;
    PinnedMemory verdicts_;
    std::vector<Block> blocks_;
    uint32_t next_ = 0;
    std::mutex mutex_;
};

} // namespace ascend_device
