// Launches of the device library with the kernels on the host model. Windows are single regions here: what kernels may
// do within them is tested where the kernels are.
#include <mutex>
#include <vector>

#include "announce.h"
#include "device.h"
#include "kernels.h"
#include "launch.h"
#include "runtime_stand_in.h"

extern "C" void moe_announce(uint8_t *arguments);
extern "C" void moe_tell(uint8_t *arguments);

namespace {

using namespace ascend_kernels;
using ascend_model::Region;

std::mutex device_mutex; // kernels that use all cores run one after the other
ascend_model::Device device;

class Memory {
  public:
    Memory(const KernelArguments &common, uint32_t cores) : layout_(common.layout) {
        const auto *windows = reinterpret_cast<const uint64_t *>(common.windows);
        for (uint32_t rank = 0; rank < layout_.ranks; ++rank)
            add("window", Region::control, windows[rank], layout_.total_bytes);
        add("windows", Region::input, common.windows, layout_.ranks * sizeof(uint64_t));
        add("workspace", Region::workspace, common.workspace, WorkspaceBytes(layout_, cores));
    }
    void add(const char *name, Region::Kind kind, uint64_t begin, uint64_t bytes) {
        if (begin != 0 && bytes > 0)
            regions_.push_back({name, kind, begin, bytes, 0, false, false});
    }
    void add_tokens(const char *name, Region::Kind kind, uint64_t begin, uint64_t tokens, uint64_t stride) {
        if (tokens > 0)
            add(name, kind, begin, (tokens - 1) * stride + layout_.out_row_bytes);
    }
    std::vector<Region> regions() const { return regions_; }

  private:
    const ExchangeLayout &layout_;
    std::vector<Region> regions_;
};

Memory memory_of(const DispatchArguments &call, uint32_t cores) {
    const ExchangeLayout &layout = call.common.layout;
    const uint64_t pairs = uint64_t{call.tokens} * layout.topk;
    Memory memory(call.common, cores);
    memory.add_tokens("x", Region::input, call.x, call.tokens, call.x_stride);
    memory.add("ids", Region::input, call.ids, pairs * call.ids_bytes);
    memory.add("positions", Region::output, call.positions, pairs * sizeof(int64_t));
    memory.add("counts", Region::output, call.counts, layout.experts / layout.ranks * sizeof(int64_t));
    memory.add("matrix", Region::output, call.matrix, uint64_t{layout.ranks} * layout.experts * sizeof(uint32_t));
    memory.add("segments", Region::input, call.segments, (cores + 1) * sizeof(uint64_t));
    return memory;
}
Memory memory_of(const CombineArguments &call, uint32_t cores) {
    const uint64_t pairs = uint64_t{call.tokens} * call.common.layout.topk;
    Memory memory(call.common, cores);
    memory.add("positions", Region::input, call.positions, pairs * sizeof(int64_t));
    memory.add("weights", Region::input, call.weights, pairs * sizeof(float));
    memory.add_tokens("result", Region::output, call.out, call.tokens, call.out_stride);
    memory.add("segments", Region::input, call.segments, (cores + 1) * sizeof(uint64_t));
    return memory;
}
Memory memory_of(const AnnounceArguments &call, uint32_t cores) {
    Memory memory(call.common, cores);
    memory.add("block", Region::input, call.block, call.block_bytes);
    return memory;
}
Memory memory_of(const TellArguments &call, uint32_t cores) { return {call.common, cores}; }

template <class Arguments> void run(void (*kernel)(uint8_t *), uint32_t cores, uint64_t address) {
    auto *begin = reinterpret_cast<uint8_t *>(address);
    const auto &arguments = *reinterpret_cast<const Arguments *>(begin);
    Memory memory = memory_of(arguments, cores);
    memory.add("arguments", Region::input, address, sizeof arguments);
    const std::lock_guard lock(device_mutex);
    if (device.launch(cores, memory.regions(), [=] { kernel(begin); }))
        return;
    Verdict broken = {};
    broken.result = EXCHANGE_PEER_FAILED;
    broken.culprit = arguments.common.rank;
    *reinterpret_cast<Verdict *>(arguments.common.workspace) = broken;
}

} // namespace

void ascend_device::launch(Kernel kernel, uint32_t cores, void *stream, uint64_t arguments) {
    cann_stand_in::enqueue(stream, "launch", [=] {
        if (kernel == dispatch_kernel)
            run<DispatchArguments>(moe_dispatch, cores, arguments);
        else if (kernel == combine_kernel)
            run<CombineArguments>(moe_combine, cores, arguments);
        else if (kernel == announce_kernel)
            run<AnnounceArguments>(moe_announce, cores, arguments);
        else
            run<TellArguments>(moe_tell, cores, arguments);
    });
}

const char *cann_stand_in_violation() { return device.violation().c_str(); }
