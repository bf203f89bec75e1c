// The C ABI of kernels/include/exchange.h with the Ascend kernels behind dispatch and combine, executed on the model.
// Everything else (plans, refusals, leaving) is the host library's, as it would be beside an NPU.
#include <algorithm>
#include <cstring>

#include <poll.h>

#include "../kernels.h"
#include "../launch/limits.h"
#include "../launch/step_events.h"
#include "../words.h"
#include "launches.h"
#include "model_control.h"
#include "session.h"

namespace {

using namespace ascend_kernels;
using ascend_model::Launch;
using ascend_model::Pages;
using ascend_moe::Session;

uint32_t cores_in_use = 1;
// One for the process: a session has one user at a time, though not always the same thread.
ascend_model::Device device;

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

// Has a kernel leave the times of its steps if the session is traced, and makes events of them, in place of what the
// host would write down beside it.
class TimedSteps {
  public:
    explicit TimedSteps(ExchangeSession &session) : session_(session), trace_(session.trace) {
        session.trace = nullptr;
    }
    ~TimedSteps() { session_.trace = trace_; }
    TimedSteps(const TimedSteps &) = delete;
    TimedSteps &operator=(const TimedSteps &) = delete;

    // The dispatch takes the word to the part that its combine looks at.
    void ask() {
        const uint64_t asked = trace_ != nullptr;
        memcpy(static_cast<uint8_t *>(session_.windows[session_.rank]) + session_.layout->state +
                   state_timed * sizeof asked,
               &asked, sizeof asked);
    }
    void lend(Launch &launch) {
        std::fill_n(times_.data(), step_bytes / sizeof(StepTimes), StepTimes{});
        launch.use_steps(times_.data());
    }
    // The cycles of the model are those of the host's clock.
    void write_down(uint64_t epoch) {
        const auto &times = times_.data()[StepsOffset(epoch) / sizeof(StepTimes)];
        if (trace_ != nullptr && times.seal == SealOf(times))
            AddEvents(times, [](uint64_t cycle) { return cycle * cycle_ns; }, *session_.layout, *trace_);
    }

  private:
    static inline Pages<StepTimes> times_ = Pages<StepTimes>(step_bytes / sizeof(StepTimes));
    ExchangeSession &session_;
    ExchangeTrace *trace_;
};

// Runs the kernel and returns its verdict; a rank whose kernel violated the model tells the others that it failed.
template <class Arguments>
Verdict run(Launch &launch, ExchangeSession &session, Session &wrapped, void (*kernel)(Arguments),
            const Arguments &arguments) {
    Verdict verdict = {};
    Watch watch(session);
    if (device.launch(cores_in_use, launch.memory(), [=] { kernel(arguments); }, [&watch] { watch.look(); })) {
        verdict = launch.verdict();
        if (verdict.result == EXCHANGE_OK)
            watch.forget();
    } else {
        verdict.result = EXCHANGE_PEER_FAILED;
        verdict.culprit = session.rank;
        wrapped.push_status({verdict.result, verdict.culprit, session.step, 0});
    }
    return verdict;
}

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
    TimedSteps timed(*session);
    Session wrapped(*session);
    session->epoch = call->epoch;
    if (const int result = wrapped.begin_step(only_meet ? EXCHANGE_STEP_REJOIN : EXCHANGE_STEP_DONE); result != 0)
        return result;
    Launch launch(*session, cores_in_use, WorkspaceBytes(*session->layout, cores_in_use));
    const auto &state = wrapped.own().part({call->slot, call->part});
    launch.leave_ends(SequenceWord(state.epoch, state.rendezvous));
    timed.lend(launch);
    // The own arrive word tells of which kind the dispatch was.
    const auto &arrived = wrapped.own().arrive({call->slot, call->part}, session->rank);
    const uint32_t kind = ascend_moe::tag_of(arrived.load(std::memory_order_relaxed));
    const Verdict verdict = run(launch, *session, wrapped, moe_combine, launch.combine(*call, kind, only_meet));
    timed.write_down(verdict.epoch);
    const int result = conclude(*session, wrapped, verdict);
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
    TimedSteps timed(*session);
    Session wrapped(*session);
    if (const int result = wrapped.begin_step(EXCHANGE_STEP_ANNOUNCE); result != EXCHANGE_OK)
        return result;
    Launch launch(*session, cores_in_use, WorkspaceBytes(*session->layout, cores_in_use));
    timed.ask();
    timed.lend(launch);
    const Verdict verdict = run(launch, *session, wrapped, moe_dispatch, launch.dispatch(*call));
    timed.write_down(verdict.epoch);
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
