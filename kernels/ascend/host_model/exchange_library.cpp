// The C ABI of kernels/include/exchange.h with the Ascend kernels behind dispatch and combine, executed on the model.
// Everything else (plans, refusals, leaving) is the host library's, as it would be beside an NPU.
#include <cstring>
#include <memory>
#include <vector>

#include <poll.h>

#include "../../host/routing.h"
#include "../arguments.h"
#include "../kernels.h"
#include "../launch/limits.h"
#include "../launch/segments.h"
#include "../words.h"
#include "model_control.h"
#include "session.h"

namespace {

using namespace ascend_kernels;
using ascend_model::Region;
using ascend_moe::Session;

constexpr uint64_t cycle_ns = 20;

uint32_t cores_in_use = 1;
// One for the process: a session has one user at a time, though not always the same thread.
ascend_model::Device device;

uint64_t address_of(const void *pointer) { return reinterpret_cast<uint64_t>(pointer); }

Region region(const char *name, Region::Kind kind, uint64_t begin, uint64_t bytes, uint32_t window = 0) {
    return {name, kind, begin, bytes, window, false, false};
}

// What a kernel may touch in the windows, by the rules of docs/architecture.md.
void add_windows(std::vector<Region> &memory, const ExchangeSession &session) {
    const ExchangeLayout &layout = *session.layout;
    const uint64_t slot_rows = layout.slots * layout.capacity;
    const uint64_t lines = uint64_t{layout.ranks} * EXCHANGE_LINE_BYTES;
    for (uint32_t rank = 0; rank < layout.ranks; ++rank) {
        const uint64_t base = address_of(session.windows[rank]);
        const auto add = [&](const char *name, Region::Kind kind, uint64_t offset, uint64_t bytes, bool rows = false,
                             bool exclusive = false) {
            memory.push_back({name, kind, base + offset, bytes, rank, exclusive, rows});
        };
        if (rank == session.rank)
            add("state", Region::output, layout.state, (1 + 2 * layout.slots) * EXCHANGE_LINE_BYTES, false, true);
        const uint64_t record = (1 + layout.count_units) * EXCHANGE_UNIT_BYTES;
        add("status", Region::control, layout.status, lines, false, true);
        add("records", Region::control, layout.records, 2 * layout.ranks * record);
        add("arrive", Region::flags, layout.arrive, 2 * layout.slots * lines, false, true);
        add("done", Region::flags, layout.done, 2 * layout.slots * lines, false, true);
        add("rows", Region::payload, layout.rows, slot_rows * layout.row_bytes, true);
        if (layout.quantised)
            add("scales", Region::payload, layout.scales, slot_rows * EXCHANGE_LINE_BYTES, false, true);
        add("out", Region::results, layout.out, slot_rows * layout.out_row_bytes, true);
    }
}

// What the host does beside a kernel that waits, which cannot see processes: it says in this rank's own status line,
// from which every wait reads, that a peer's process has ended.
class Watch {
  public:
    explicit Watch(ExchangeSession &session) : session_(session) {}

    void look() {
        for (uint32_t peer = 0; peer < session_.layout->ranks; ++peer)
            if (!told_ && has_ended(peer) && status_of(peer).result != EXCHANGE_PEER_CLOSED) {
                told_ = true;
                own_word().store(ascend_moe::Status{EXCHANGE_PEER_LOST, peer, EXCHANGE_STEP_NONE, 0}.packed(),
                                 std::memory_order_release);
            }
    }
    // Takes back what no wait needed: the peer had done its part before. The next wait is told again.
    void forget() {
        if (told_)
            own_word().store(0, std::memory_order_release);
    }

  private:
    bool has_ended(uint32_t peer) const {
        pollfd entry = {session_.peer_pidfds[peer], POLLIN, 0};
        return entry.fd >= 0 && poll(&entry, 1, 0) == 1;
    }
    ascend_moe::Window own() const { return {*session_.layout, session_.windows[session_.rank]}; }
    ascend_moe::Word &own_word() const { return own().status(session_.rank); }
    ascend_moe::Status status_of(uint32_t peer) const {
        return ascend_moe::Status::unpack(own().status(peer).load(std::memory_order_acquire));
    }

    ExchangeSession &session_;
    bool told_ = false;
};

class Launch {
  public:
    explicit Launch(ExchangeSession &session)
        : session_(session), workspace_(WorkspaceBytes(*session.layout, cores_in_use) / EXCHANGE_LINE_BYTES) {
        add_windows(memory_, session);
        add("windows", Region::input, address_of(session.windows), session.layout->ranks * sizeof(void *));
        add("workspace", Region::workspace, address_of(workspace_.data()), workspace_.size() * EXCHANGE_LINE_BYTES);
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
        arguments.timeout_cycles = session_.timeout_ns / cycle_ns;
        arguments.rank = session_.rank;
        return arguments;
    }
    // Keeps the bounds of segments until the kernel has run; returns what its arguments say about them.
    uint64_t use_segments(std::vector<uint64_t> bounds) {
        segments_ = std::move(bounds);
        add("segments", Region::input, address_of(segments_.data()), segments_.size() * sizeof(uint64_t));
        return address_of(segments_.data());
    }
    // Runs the kernel and returns its verdict; a rank whose kernel violated the model tells the others that it failed.
    template <class Arguments> Verdict run(Session &session, void (*kernel)(Arguments), const Arguments &arguments) {
        Verdict verdict = {};
        Watch watch(session_);
        if (device.launch(cores_in_use, memory_, [=] { kernel(arguments); }, [&watch] { watch.look(); })) {
            verdict = workspace_.front().verdict;
            if (verdict.result == EXCHANGE_OK)
                watch.forget();
        } else {
            verdict.result = EXCHANGE_PEER_FAILED;
            verdict.culprit = session_.rank;
            session.push_status({verdict.result, verdict.culprit, session_.step, 0});
        }
        return verdict;
    }

  private:
    union alignas(EXCHANGE_LINE_BYTES) Line {
        Verdict verdict;
        uint8_t bytes[EXCHANGE_LINE_BYTES];
        Line() : bytes{} {}
    };
    ExchangeSession &session_;
    std::vector<Line> workspace_;
    std::vector<Region> memory_;
    std::vector<uint64_t> segments_;
};

int conclude(ExchangeSession &session, Session &wrapped, const Verdict &verdict) {
    session.epoch = verdict.epoch;
    session.step = verdict.step;
    for (uint32_t rank = 0; rank < session.layout->ranks; ++rank)
        session.missing[rank] = 0;
    if (verdict.result == EXCHANGE_OK)
        return EXCHANGE_OK;
    if (verdict.result == EXCHANGE_PEER_TIMEOUT)
        session.missing[verdict.culprit] = 1;
    session.fault = {verdict.result, verdict.culprit, verdict.step,   verdict.cause,
                     verdict.epoch,  verdict.detail,  verdict.region, 0};
    if (verdict.result == EXCHANGE_INVALID_INPUT && verdict.cause == EXCHANGE_INPUT_ARGUMENT)
        if (const int result = wrapped.keep_refusal(verdict.culprit, static_cast<uint64_t>(verdict.detail));
            result != EXCHANGE_OK)
            return result;
    return static_cast<int>(verdict.result);
}

int combine(ExchangeSession *session, const ExchangeCombine *call, uint32_t only_meet) {
    Session wrapped(*session);
    const ExchangeLayout &layout = *session->layout;
    session->epoch = call->epoch;
    if (const int result = wrapped.begin_step(only_meet ? EXCHANGE_STEP_REJOIN : EXCHANGE_STEP_DONE); result != 0)
        return result;
    Launch launch(*session);
    CombineArguments arguments = {launch.common(),
                                  address_of(call->positions),
                                  address_of(call->weights),
                                  address_of(call->out),
                                  call->out_stride,
                                  0,
                                  call->tokens,
                                  call->slot,
                                  call->part,
                                  only_meet};
    const uint64_t pairs = uint64_t{call->tokens} * layout.topk;
    launch.add("positions", Region::input, arguments.positions, pairs * sizeof(int64_t));
    if (!only_meet) {
        launch.add("weights", Region::input, arguments.weights, pairs * sizeof(float));
        launch.add_rows("result", Region::output, arguments.out, call->tokens, call->out_stride);
        // The own arrive word tells of which kind the dispatch was.
        const auto &arrived = wrapped.own().arrive({call->slot, call->part}, session->rank);
        if (ascend_moe::tag_of(arrived.load(std::memory_order_relaxed)) == EXCHANGE_PREFILL)
            arguments.segments = launch.use_segments(CutUnits(layout, call->positions, call->tokens, cores_in_use));
    }
    const int result = conclude(*session, wrapped, launch.run(wrapped, moe_combine, arguments));
    return result != EXCHANGE_OK || only_meet ? result : wrapped.begin_step(EXCHANGE_STEP_REDUCE);
}

} // namespace

int exchange_dispatch(ExchangeSession *session, ExchangeDispatch *call) {
    const ExchangeLayout &layout = *session->layout;
    const char *refusal = exchange_refuse_layout(&layout);
    if (refusal == nullptr && call->row_bytes > 0)
        refusal = "the Ascend kernels place whole rows without gaps; use layout='compact'";
    if (refusal != nullptr)
        return exchange_refuse(session, call->kind, reinterpret_cast<const uint8_t *>(refusal),
                               static_cast<uint32_t>(strlen(refusal)));
    Session wrapped(*session);
    if (const int result = wrapped.begin_step(EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
        return result;
    Launch launch(*session);
    DispatchArguments arguments = {launch.common(),
                                   address_of(call->x),
                                   call->x_stride,
                                   address_of(call->ids),
                                   address_of(call->positions),
                                   address_of(call->counts),
                                   address_of(call->matrix),
                                   0,
                                   call->ids_bytes,
                                   call->tokens,
                                   call->kind,
                                   call->part,
                                   call->continues,
                                   RowUnit(layout, call->tokens, cores_in_use)};
    const uint64_t pairs = uint64_t{call->tokens} * layout.topk;
    launch.add_rows("x", Region::input, arguments.x, call->tokens, call->x_stride);
    launch.add("ids", Region::input, arguments.ids, pairs * call->ids_bytes);
    launch.add("positions", Region::output, arguments.positions, pairs * sizeof(int64_t));
    launch.add("counts", Region::output, arguments.counts, layout.experts / layout.ranks * sizeof(int64_t));
    launch.add("matrix", Region::output, arguments.matrix, uint64_t{layout.ranks} * layout.experts * sizeof(uint32_t));
    if (call->kind == EXCHANGE_PREFILL) {
        const ascend_moe::Routing ids(call->ids, call->ids_bytes);
        std::vector<uint32_t> routed(call->tokens);
        uint32_t rows = 0;
        for (uint64_t token = 0; token < call->tokens; ++token) {
            for (uint64_t k = 0; k < layout.topk; ++k)
                routed[token] += ids[token * layout.topk + k] >= 0;
            rows += routed[token] > 0;
        }
        arguments.row_unit = RowUnit(layout, rows, cores_in_use);
        arguments.segments = launch.use_segments(CutRows(layout, arguments.row_unit, call->tokens, cores_in_use,
                                                         [&routed](uint64_t token) { return routed[token]; }));
    }
    const Verdict verdict = launch.run(wrapped, moe_dispatch, arguments);
    call->epoch = session->begun = verdict.epoch;
    call->slot = verdict.slot;
    call->first_row = ascend_kernels::Part{verdict.slot, call->part}.FirstRow(layout);
    call->total = verdict.total;
    if (const int result = conclude(*session, wrapped, verdict); result != EXCHANGE_OK)
        return result;
    ascend_moe::keep_weights(layout, *call);
    return wrapped.begin_step(EXCHANGE_STEP_EXPERTS);
}

int exchange_combine(ExchangeSession *session, const ExchangeCombine *call) { return combine(session, call, 0); }

// A launch is not divided yet: rows move in the first part of a dispatch, and all of combine is in the second.
int exchange_dispatch_send(ExchangeSession *session, ExchangeDispatch *call) {
    return exchange_dispatch(session, call);
}
int exchange_dispatch_receive(ExchangeSession *, const ExchangeDispatch *) { return EXCHANGE_OK; }
int exchange_combine_send(ExchangeSession *, const ExchangeCombine *) { return EXCHANGE_OK; }
int exchange_combine_receive(ExchangeSession *session, const ExchangeCombine *call) {
    return combine(session, call, 0);
}

int exchange_rejoin(ExchangeSession *session, const ExchangeCombine *call) { return combine(session, call, 1); }

const char *exchange_refuse_layout(const ExchangeLayout *layout) {
    static thread_local char text[EXCHANGE_REFUSAL_BYTES];
    return RefuseLayout(*layout, cores_in_use, text, sizeof text);
}

void ascend_model_buffers(const ExchangeLayout *layout, uint64_t *bytes) {
    bytes[0] = DispatchBufferBytes(*layout, cores_in_use);
    bytes[1] = CombineBufferBytes(*layout, cores_in_use);
}

void ascend_model_use_cores(uint32_t cores) { cores_in_use = cores; }

const char *ascend_model_violation() { return device.violation().c_str(); }

uint32_t ascend_model_costs(ascend_model::CoreCosts *costs, uint32_t cores) {
    const auto &last = device.costs();
    for (uint32_t core = 0; core < cores && core < last.size(); ++core)
        costs[core] = last[core];
    return static_cast<uint32_t>(last.size());
}
