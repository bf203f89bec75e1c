// What launches of the kernels on the model need: their arguments, and the memory that they may use.
#pragma once

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "../../host/routing.h"
#include "../arguments.h"
#include "../launch/segments.h"
#include "device.h"
#include "pages.h"

namespace ascend_model {

using namespace ascend_kernels;

inline uint64_t address_of(const void *pointer) { return reinterpret_cast<uint64_t>(pointer); }

inline Region region(const char *name, Region::Kind kind, uint64_t begin, uint64_t bytes, uint32_t window = 0) {
    return {name, kind, begin, bytes, window, false, false};
}

// What a kernel may touch in the windows, by the rules of docs/architecture.md.
inline void add_windows(std::vector<Region> &memory, const ExchangeSession &session) {
    const ExchangeLayout &layout = *session.layout;
    const uint64_t slot_rows = layout.slots * layout.capacity;
    const uint64_t lines = uint64_t{layout.ranks} * EXCHANGE_LINE_BYTES;
    for (uint32_t rank = 0; rank < layout.ranks; ++rank) {
        const uint64_t base = address_of(session.windows[rank]);
        const auto add = [&](const char *name, Region::Kind kind, uint64_t offset, uint64_t bytes, bool rows = false,
                             bool exclusive = false) {
            memory.push_back({name, kind, base + offset, bytes, rank, exclusive, rows, rank != session.rank});
        };
        if (rank == session.rank)
            add("state", Region::output, layout.state, (1 + 2 * layout.slots) * EXCHANGE_LINE_BYTES, false, true);
        const uint64_t record = (1 + layout.count_units) * EXCHANGE_UNIT_BYTES;
        add("status", Region::control, layout.status, lines, false, true);
        add("records", Region::control, layout.records, 2 * layout.ranks * record);
        if (layout.granting)
            add("grants", Region::control, layout.grants, layout.ranks * record);
        add("arrive", Region::flags, layout.arrive, 2 * layout.slots * lines, false, true);
        add("done", Region::flags, layout.done, 2 * layout.slots * lines, false, true);
        add("rows", Region::payload, layout.rows, slot_rows * layout.row_bytes, true);
        if (layout.quantised)
            add("scales", Region::payload, layout.scales, slot_rows * EXCHANGE_LINE_BYTES, false, true);
        add("out", Region::results, layout.out, slot_rows * layout.out_row_bytes, true);
    }
}

class Launch {
  public:
    Launch(const ExchangeSession &session, uint32_t cores, uint64_t workspace_bytes)
        : session_(session), cores_(cores), workspace_(workspace_bytes), ends_(cores * EXCHANGE_LINE_BYTES) {
        add_windows(memory_, session);
        add("windows", Region::input, address_of(session.windows), session.layout->ranks * sizeof(void *));
        add("workspace", Region::workspace, address_of(workspace_.data()), workspace_bytes);
        memory_.push_back(region("ends", Region::ends, address_of(ends_.data()), cores * EXCHANGE_LINE_BYTES));
        memory_.back().exclusive_lines = true;
    }
    void add(const char *name, Region::Kind kind, uint64_t begin, uint64_t bytes) {
        if (bytes > 0)
            memory_.push_back(region(name, kind, begin, bytes));
    }
    void add_rows(const char *name, Region::Kind kind, uint64_t begin, uint64_t tokens, uint64_t stride) {
        if (tokens == 0)
            return;
        const uint64_t row = session_.layout->out_row_bytes;
        memory_.push_back(region(name, kind, begin, (tokens - 1) * stride + row));
        memory_.back().rows = true;
    }
    KernelArguments common() const {
        KernelArguments arguments = {};
        arguments.layout = *session_.layout;
        arguments.windows = address_of(session_.windows);
        arguments.workspace = address_of(workspace_.data());
        arguments.ends = address_of(ends_.data());
        arguments.steps = steps_;
        arguments.timeout_cycles = session_.timeout_ns / cycle_ns;
        arguments.rank = session_.rank;
        return arguments;
    }
    // Keeps the bounds of segments until the kernel has run; returns what its arguments say about them.
    uint64_t use_segments(const std::vector<uint64_t> &bounds) {
        std::copy(bounds.begin(), bounds.end(), segments_.emplace(bounds.size()).data());
        add("segments", Region::input, address_of(segments_->data()), bounds.size() * sizeof(uint64_t));
        return address_of(segments_->data());
    }
    DispatchArguments dispatch(const ExchangeDispatch &call) {
        const ExchangeLayout &layout = *session_.layout;
        DispatchArguments arguments = {common(),
                                       address_of(call.x),
                                       call.x_stride,
                                       address_of(call.ids),
                                       address_of(call.positions),
                                       address_of(call.counts),
                                       address_of(call.matrix),
                                       address_of(call.totals),
                                       0,
                                       call.ids_bytes,
                                       call.tokens,
                                       call.kind,
                                       call.part,
                                       call.continues,
                                       RowUnit(layout)};
        const uint64_t pairs = uint64_t{call.tokens} * layout.topk;
        add_rows("x", Region::input, arguments.x, call.tokens, call.x_stride);
        add("ids", Region::input, arguments.ids, pairs * call.ids_bytes);
        add("positions", Region::output, arguments.positions, pairs * sizeof(int64_t));
        add("counts", Region::output, arguments.counts, layout.experts / layout.ranks * sizeof(int64_t));
        add("matrix", Region::output, arguments.matrix, uint64_t{layout.ranks} * layout.counted * sizeof(uint32_t));
        if (layout.granting)
            add("totals", Region::output, arguments.totals, layout.ranks * sizeof(int64_t));
        if (call.kind == EXCHANGE_PREFILL) {
            const ascend_moe::Routing ids(call.ids, call.ids_bytes);
            std::vector<uint32_t> routed(call.tokens);
            for (uint64_t pair = 0; pair < pairs; ++pair)
                routed[pair / layout.topk] += ids[pair] >= 0;
            arguments.segments = use_segments(CutRows(layout, arguments.row_unit, call.tokens, cores_,
                                                      [&routed](uint64_t token) { return routed[token]; }));
        }
        return arguments;
    }
    // `kind` is that of its dispatch.
    CombineArguments combine(const ExchangeCombine &call, uint32_t kind, uint32_t only_meet) {
        const ExchangeLayout &layout = *session_.layout;
        CombineArguments arguments = {common(),
                                      address_of(call.positions),
                                      address_of(call.weights),
                                      address_of(call.out),
                                      call.out_stride,
                                      0,
                                      call.tokens,
                                      call.slot,
                                      call.part,
                                      only_meet,
                                      call.layer,
                                      0};
        const uint64_t pairs = uint64_t{call.tokens} * layout.topk;
        add("positions", Region::input, arguments.positions, pairs * sizeof(int64_t));
        if (!only_meet) {
            add("weights", Region::input, arguments.weights, pairs * sizeof(float));
            add_rows("result", Region::output, arguments.out, call.tokens, call.out_stride);
            if (kind == EXCHANGE_PREFILL)
                arguments.segments = use_segments(CutUnits(layout, call.positions, call.tokens, cores_));
        }
        return arguments;
    }
    // Where it leaves the times of its steps, if the state asks for them.
    void use_steps(StepTimes *times) {
        steps_ = address_of(times);
        add("steps", Region::output, steps_, step_bytes);
    }
    // As a launch before has left them.
    void leave_ends(uint64_t stamp) {
        for (uint32_t core = 0; core < cores_; ++core)
            memcpy(ends_.data() + core * EXCHANGE_LINE_BYTES, &stamp, sizeof stamp);
    }
    const std::vector<Region> &memory() const { return memory_; }
    Verdict verdict() const {
        Verdict found;
        memcpy(&found, workspace_.data(), sizeof found);
        return found;
    }

  private:
    const ExchangeSession &session_;
    const uint32_t cores_;
    Pages<uint8_t> workspace_;
    Pages<uint8_t> ends_;
    uint64_t steps_ = 0;
    std::vector<Region> memory_;
    std::optional<Pages<uint64_t>> segments_;
};

} // namespace ascend_model
