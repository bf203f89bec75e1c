#include "session.h"

#include <algorithm>

#include <poll.h>

#include "checksum.h"
#include "waiting.h"

namespace ascend_moe {
namespace {

constexpr uint64_t check_interval_ns = 1'000'000;

bool process_has_ended(int32_t pidfd) {
    if (pidfd < 0)
        return false;
    pollfd entry = {pidfd, POLLIN, 0};
    return poll(&entry, 1, 0) == 1;
}

} // namespace

void push_status(const ExchangeSession &session, const Status &status) {
    // @protocol push-status. release: whoever reads the status may then look at anything this rank did before it.
    for (uint32_t peer = 0; peer < session.layout->ranks; ++peer)
        Window(*session.layout, session.windows[peer])
            .status(session.rank)
            .store(status.packed(), std::memory_order_release);
}

bool Session::Pause::check_due() {
    if (turns_ < spin_turns) {
        ++turns_;
        relax();
        return false;
    }
    const uint64_t now = now_ns();
    if (started_ns_ == 0)
        started_ns_ = checked_ns_ = now;
    rest(now - started_ns_, spin_ns_);
    if (now - checked_ns_ < check_interval_ns)
        return false;
    checked_ns_ = now;
    return true;
}

bool Session::Pause::expired() const { return checked_ns_ - started_ns_ >= timeout_ns_; }

uint64_t Session::Pause::held_up_ns() {
    if (started_ns_ == 0)
        return 0;
    const uint64_t now = now_ns();
    const uint64_t held_up = now - (told_ns_ == 0 ? started_ns_ : told_ns_);
    told_ns_ = now;
    return held_up;
}

bool Session::Pause::signals_due() { return ++checks_ % 50 == 0; }

bool Session::signal_wants_to_end() {
    const ExchangeInterpreter &interpreter = session_.interpreter;
    if (interpreter.check_signals == nullptr)
        return false;
    interpreter.acquire(released_);
    const bool wanted = interpreter.check_signals() != 0;
    released_ = interpreter.release();
    return wanted;
}

int Session::begin_exchange() {
    if (const int result = refuse_poisoned(); result != EXCHANGE_OK)
        return result;
    ExchangeState state = {};
    if (const int result = load_state(state); result != EXCHANGE_OK)
        return result;
    // @protocol advance-epoch
    session_.epoch = session_.begun = state.epoch + 1;
    own().state() = {session_.epoch, state.dispatches};
    return EXCHANGE_OK;
}

int Session::resume_exchange(uint64_t epoch) {
    session_.epoch = epoch;
    return refuse_poisoned();
}

int Session::begin_step(uint32_t step) {
    session_.step = step;
    trace_.begin_step(step, session_.epoch);
    if (session_.on_step != nullptr && session_.on_step(session_.watcher, step) != 0)
        return fail(EXCHANGE_PEER_FAILED, rank());
    return EXCHANGE_OK;
}

int Session::fail(uint32_t result, uint32_t culprit, uint32_t cause, int64_t detail) {
    session_.fault = {result, culprit, session_.step, cause, session_.epoch, detail, EXCHANGE_REGION_NONE, 0};
    if (result >= EXCHANGE_PEER_LOST && result != EXCHANGE_POISONED)
        push_status({result, culprit, session_.step, static_cast<uint32_t>(session_.epoch)});
    return static_cast<int>(result);
}

int Session::fail_corrupt(uint32_t region, uint32_t source, uint64_t value) {
    for (uint32_t peer = 0; peer < ranks(); ++peer) {
        StatusLine &line = window(peer).status_line(rank());
        line.value.store(value, std::memory_order_relaxed);
        line.region.store(region, std::memory_order_relaxed);
    }
    const int result = fail(EXCHANGE_CORRUPTION, source, 0, static_cast<int64_t>(value));
    session_.fault.region = region;
    return result;
}

int Session::load_state(ExchangeState &state) {
    state = own().state();
    if (state.is_sealed() && state.epoch == session_.begun)
        return EXCHANGE_OK;
    return fail_corrupt(EXCHANGE_REGION_STATE, rank(), state.epoch != session_.begun ? state.epoch : state.dispatches);
}

int Session::load_state(Part part, PartState &state) {
    state = own().part(part);
    if (state.is_sealed() && state.epoch == session_.epoch)
        return EXCHANGE_OK;
    return fail_corrupt(EXCHANGE_REGION_STATE, rank(), state.epoch != session_.epoch ? state.epoch : state.rendezvous);
}

int Session::open_mailbox(uint32_t source, uint64_t bytes, uint8_t *to) {
    memcpy(to, own().mailbox(session_.epoch, source), bytes);
    const uint32_t found = block_checksum(to, bytes);
    if (found == own().header(session_.epoch, source).block_check)
        return EXCHANGE_OK;
    return fail_corrupt(EXCHANGE_REGION_MAILBOXES, source, found);
}

int Session::keep_refusal(uint32_t source, uint64_t bytes) {
    memset(session_.refusal, 0, sizeof session_.refusal);
    return open_mailbox(source, std::min<uint64_t>(bytes, EXCHANGE_REFUSAL_BYTES), session_.refusal);
}

int Session::fail_refused(uint32_t source, const window_words::Header &header) {
    if (header.error == EXCHANGE_INPUT_ARGUMENT)
        if (const int result = keep_refusal(source, header.block_bytes); result != EXCHANGE_OK)
            return result;
    return fail(EXCHANGE_INVALID_INPUT, source, header.error, header.detail);
}

// A status that a peer pushed: fails with the peer's finding, so that the real culprit is named everywhere.
int Session::fail_as_told(uint32_t source, const Status &status) {
    const StatusLine &line = own().status_line(source);
    const uint64_t region = line.region.load(std::memory_order_relaxed);
    const bool is_corruption = status.result == EXCHANGE_CORRUPTION;
    if (is_corruption && (region == EXCHANGE_REGION_NONE || region > EXCHANGE_REGION_GRANTS))
        return fail_corrupt(EXCHANGE_REGION_STATUS, source, status.packed());
    if (status.culprit == rank() && !is_corruption)
        return fail(EXCHANGE_POISONED, status.culprit, status.result);
    const uint32_t own_step = session_.step;
    const uint64_t own_epoch = session_.epoch;
    session_.step = status.step;
    // The word has the low half of an epoch that cannot be far from this rank's.
    session_.epoch += static_cast<uint64_t>(static_cast<int32_t>(status.epoch - static_cast<uint32_t>(own_epoch)));
    const int result = is_corruption ? fail_corrupt(static_cast<uint32_t>(region), status.culprit,
                                                    line.value.load(std::memory_order_relaxed))
                                     : fail(status.result, status.culprit, status.result);
    session_.step = own_step;
    session_.epoch = own_epoch;
    return result;
}

int Session::refuse_poisoned() {
    // @protocol refuse-poisoned. acquire: pairs with push-status.
    const uint64_t own_word = own().status(rank()).load(std::memory_order_acquire);
    if (own_word == 0)
        return judge_statuses();
    if (!status_is_possible(own_word, ranks()))
        return fail_corrupt(EXCHANGE_REGION_STATUS, rank(), own_word);
    const Status status = Status::unpack(own_word);
    return fail(EXCHANGE_POISONED, status.culprit, status.result);
}

// Fails as the first rank says that has failed. One that has closed is needed no more, unless somebody waits for it.
int Session::judge_statuses() {
    // @protocol judge-status
    for (uint32_t source = 0; source < ranks(); ++source) {
        const uint64_t word = own().status(source).load(std::memory_order_acquire);
        if (word == 0)
            continue;
        if (!status_is_possible(word, ranks()))
            return fail_corrupt(EXCHANGE_REGION_STATUS, source, word);
        if (const Status status = Status::unpack(word); status.result != EXCHANGE_PEER_CLOSED)
            return fail_as_told(source, status);
    }
    return EXCHANGE_OK;
}

void Session::note_ended() {
    for (uint32_t source = 0; source < ranks(); ++source) {
        const Status status = Status::unpack(own().status(source).load(std::memory_order_acquire));
        // @protocol watch-processes
        session_.ended[source] =
            status.result == EXCHANGE_PEER_CLOSED || process_has_ended(session_.peer_pidfds[source]);
    }
}

// Decides whether a wait can still end well, from what note_ended and the last look at the words found.
int Session::judge(bool expired) {
    if (std::none_of(session_.missing, session_.missing + ranks(), [](uint8_t missing) { return missing != 0; }))
        return EXCHANGE_OK;
    if (const int result = judge_statuses(); result != EXCHANGE_OK)
        return result;
    for (uint32_t source = 0; source < ranks(); ++source)
        if (session_.missing[source] && session_.ended[source]) {
            const Status status = Status::unpack(own().status(source).load(std::memory_order_acquire));
            return fail(status.result == EXCHANGE_PEER_CLOSED ? EXCHANGE_PEER_CLOSED : EXCHANGE_PEER_LOST, source);
        }
    // @protocol deadline
    if (expired)
        for (uint32_t source = 0; source < ranks(); ++source)
            if (session_.missing[source])
                return fail(EXCHANGE_PEER_TIMEOUT, source);
    return EXCHANGE_OK;
}

} // namespace ascend_moe
