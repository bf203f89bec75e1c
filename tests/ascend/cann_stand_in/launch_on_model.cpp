// Launches of the device library with the kernels on the host model. Windows are single regions here: what kernels may
// do within them is tested where the kernels are.
#include <array>
#include <mutex>
#include <vector>

#include "announce.h"
#include "device.h"
#include "kernels.h"
#include "launch.h"
#include "runtime_stand_in.h"

extern "C" void moe_announce(ascend_kernels::AnnounceArguments arguments);
extern "C" void moe_tell(ascend_kernels::TellArguments arguments);
extern "C" void moe_stamp(ascend_kernels::StampArguments arguments);

namespace {

using namespace ascend_kernels;
using ascend_model::Region;

std::mutex device_mutex; // kernels that use all cores run one after the other
ascend_model::Device device;

// Lines of memory, as kernels read their arguments.
template <class T> struct alignas(EXCHANGE_LINE_BYTES) Lines {
    T first;
};

// What a launch was given, at the addresses at which the model reaches it.
template <class Arguments> class Located {
  public:
    explicit Located(const Arguments &arguments) : arguments_(arguments) {
        KernelArguments &common = arguments_.common;
        const auto *windows = reinterpret_cast<const uint64_t *>(cann_stand_in::on_host(common.windows));
        for (uint32_t rank = 0; rank < common.layout.ranks; ++rank)
            windows_.first.at(rank) = cann_stand_in::on_host(windows[rank]);
        common.windows = reinterpret_cast<uint64_t>(windows_.first.data());
        locate_each(common.workspace, common.ends, common.fault, common.steps);
        locate(arguments_);
    }
    const Arguments &operator*() const { return arguments_; }

  private:
    static constexpr uint32_t most_ranks = 1024;

    template <class... Addresses> static void locate_each(Addresses &...addresses) {
        ((addresses = addresses == 0 ? 0 : cann_stand_in::on_host(addresses)), ...);
    }
    static void locate(DispatchArguments &call) {
        // Without tokens there may be no memory behind their addresses.
        if (call.tokens == 0)
            call.x = call.ids = call.positions = 0;
        locate_each(call.x, call.ids, call.positions, call.counts, call.matrix, call.totals, call.segments);
    }
    static void locate(CombineArguments &call) {
        if (call.tokens == 0)
            call.positions = call.weights = call.out = 0;
        locate_each(call.positions, call.weights, call.out, call.segments);
    }
    static void locate(AnnounceArguments &call) { locate_each(call.block); }
    static void locate(TellArguments &) {}
    static void locate(StampArguments &call) { locate_each(call.to); }

    Arguments arguments_;
    Lines<std::array<uint64_t, most_ranks>> windows_ = {};
};

class Memory {
  public:
    Memory(const KernelArguments &common, uint32_t cores) : layout_(common.layout) {
        const auto *windows = reinterpret_cast<const uint64_t *>(common.windows);
        for (uint32_t rank = 0; rank < layout_.ranks; ++rank)
            add("window", Region::control, windows[rank], layout_.total_bytes);
        add("windows", Region::input, common.windows, layout_.ranks * sizeof(uint64_t));
        add("workspace", Region::workspace, common.workspace, WorkspaceBytes(layout_, cores));
        add("ends", Region::ends, common.ends, cores * EXCHANGE_LINE_BYTES);
        add("fault", Region::output, common.fault, EXCHANGE_LINE_BYTES);
        add("steps", Region::output, common.steps, step_bytes - sizeof(StepTimes));
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
    memory.add("matrix", Region::output, call.matrix, uint64_t{layout.ranks} * layout.counted * sizeof(uint32_t));
    memory.add("totals", Region::output, call.totals, layout.granting ? layout.ranks * sizeof(int64_t) : 0);
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
Memory memory_of(const StampArguments &call, uint32_t cores) {
    Memory memory(call.common, cores);
    memory.add("stamp", Region::output, call.to, EXCHANGE_UNIT_BYTES);
    return memory;
}

template <class Arguments> void run(void (*kernel)(Arguments), const ExchangeLaunch &launch) {
    const Located<Arguments> located(*reinterpret_cast<const Arguments *>(launch.arguments));
    const Arguments &arguments = *located;
    const Memory memory = memory_of(arguments, launch.cores);
    const std::lock_guard lock(device_mutex);
    if (device.launch(launch.cores, memory.regions(), [=] { kernel(arguments); }))
        return;
    Verdict broken = {};
    broken.result = EXCHANGE_PEER_FAILED;
    broken.culprit = arguments.common.rank;
    *reinterpret_cast<Verdict *>(arguments.common.workspace) = broken;
}

} // namespace

void ascend_device::put(const ExchangeLaunch &launch, void *stream) {
    static constexpr std::array names = {"moe_dispatch", "moe_combine", "moe_announce", "moe_tell", "moe_stamp"};
    if (launch.cores > cann_stand_in::cores_of(stream))
        device.keep_violation("a launch waits for cores that its stream may not have: a device hangs here");
    cann_stand_in::enqueue(stream, names[launch.kernel], [=] {
        if (launch.kernel == dispatch_kernel)
            run(moe_dispatch, launch);
        else if (launch.kernel == combine_kernel)
            run(moe_combine, launch);
        else if (launch.kernel == announce_kernel)
            run(moe_announce, launch);
        else if (launch.kernel == tell_kernel)
            run(moe_tell, launch);
        else
            run(moe_stamp, launch);
    });
}

const char *cann_stand_in_violation() { return device.violation().c_str(); }
