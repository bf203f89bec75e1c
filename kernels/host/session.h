// A rank's open exchange: faults, poison, and the one way to wait.
#pragma once

#include <cstdint>

#include "step_trace.h"
#include "window.h"

namespace ascend_moe {

// Pushes a finding about the session into every window. Reads only what no call changes.
void push_status(const ExchangeSession &session, const Status &status);

enum class Seen { pending, ready, impossible };

// What a wait found at a source: whether it has come, and the word that says so.
struct Sight {
    Seen seen;
    uint64_t word;
};

// A word that is not of `expected`: an earlier epoch's has not been overwritten yet, any other is nobody's.
inline Sight sight_of(uint64_t word, uint64_t expected) {
    if (word == expected)
        return {Seen::ready, word};
    return {epoch_of(word) < epoch_of(expected) ? Seen::pending : Seen::impossible, word};
}

// For the duration of one call. The interpreter, where there is one, runs other threads meanwhile.
class Session {
  public:
    explicit Session(ExchangeSession &session) : session_(session), layout_(*session.layout), trace_(session.trace) {
        if (session_.interpreter.release != nullptr)
            released_ = session_.interpreter.release();
    }
    ~Session() {
        trace_.end_call();
        if (session_.interpreter.acquire != nullptr)
            session_.interpreter.acquire(released_);
    }
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;

    const ExchangeLayout &layout() const { return layout_; }
    uint32_t rank() const { return session_.rank; }
    uint32_t ranks() const { return layout_.ranks; }
    uint64_t epoch() const { return session_.epoch; }
    Window window(uint32_t rank) const { return {layout_, session_.windows[rank]}; }
    Window own() const { return window(session_.rank); }

    // Refuses a poisoned session, else advances the epoch in the window and returns EXCHANGE_OK.
    int begin_exchange();
    // Refuses a poisoned session, else continues the exchange of `epoch`.
    int resume_exchange(uint64_t epoch);
    // Refuses to go on if the caller's step hook says so.
    int begin_step(uint32_t step);
    StepTrace &trace() { return trace_; }

    // Records a fault; from EXCHANGE_PEER_LOST on also pushes it into every window. Returns `result`.
    int fail(uint32_t result, uint32_t culprit, uint32_t cause = 0, int64_t detail = 0);
    // The same for `value`, which `source` cannot have written into that region of a window.
    int fail_corrupt(uint32_t region, uint32_t source, uint64_t value);
    // The own state as this rank left it, or the value that it cannot have left.
    int load_state(ExchangeState &state);
    int load_state(Part part, PartState &state);
    uint32_t workers() const { return session_.workers; }
    void push_status(const Status &status) { ascend_moe::push_status(session_, status); }
    // Copies `bytes` out of the mailbox of `source`. Fails unless they are those that its header announced.
    int open_mailbox(uint32_t source, uint64_t bytes, uint8_t *to);
    // Fails as `source` has: its input is invalid. Keeps the text with which it refused its arguments.
    int fail_refused(uint32_t source, const window_words::Header &header);
    int keep_refusal(uint32_t source, uint64_t bytes);

    // Waits until look(source) has seen every source rank ready in a region; the only loop in which a kernel waits.
    template <class Look> int wait_for_all(ExchangeRegion region, Look look) {
        Pause pause(session_);
        // From the next rank on: of several that are late the first one is charged, on each rank another one.
        for (uint32_t i = 1; i <= ranks(); ++i) {
            const uint32_t source = (rank() + i) % ranks();
            const bool is_late = trace_.is_on() && look(source).seen != Seen::ready;
            const int result = wait_for(source, region, look, pause);
            const uint64_t held_up_ns = pause.held_up_ns();
            session_.waited_ns[source] += held_up_ns;
            if (is_late)
                trace_.was_held_up(source, held_up_ns);
            if (result != EXCHANGE_OK)
                return result;
        }
        return EXCHANGE_OK;
    }

  private:
    // Spins shortly, then yields, then sleeps in small steps: there may be more ranks than cores.
    class Pause {
      public:
        explicit Pause(const ExchangeSession &session) : timeout_ns_(session.timeout_ns), spin_ns_(session.spin_ns) {}
        bool check_due(); // true about once a millisecond
        bool expired() const;
        uint64_t held_up_ns(); // since the last call, beyond a short spin
        bool signals_due();    // true at every fiftieth check

      private:
        uint64_t timeout_ns_, spin_ns_;
        uint64_t started_ns_ = 0;
        uint64_t checked_ns_ = 0;
        uint64_t told_ns_ = 0;
        uint32_t turns_ = 0;
        uint32_t checks_ = 0;
    };

    template <class Look> int wait_for(uint32_t source, ExchangeRegion region, Look look, Pause &pause) {
        for (Sight sight = look(source); sight.seen != Seen::ready; sight = look(source)) {
            if (sight.seen == Seen::impossible)
                return fail_corrupt(region, source, sight.word);
            if (!pause.check_due())
                continue;
            const bool expired = pause.expired();
            if (pause.signals_due() && signal_wants_to_end())
                return fail(EXCHANGE_PEER_FAILED, rank());
            // @protocol note-ended
            // Who has ended is looked up before who is missing: what a peer did in time still counts.
            note_ended();
            for (uint32_t peer = 0; peer < ranks(); ++peer)
                session_.missing[peer] = look(peer).seen != Seen::ready;
            if (const int result = judge(expired); result != EXCHANGE_OK)
                return result;
        }
        return EXCHANGE_OK;
    }
    bool signal_wants_to_end();
    void note_ended();
    int judge(bool expired);
    int refuse_poisoned();
    int judge_statuses();
    int fail_as_told(uint32_t source, const Status &status);

    ExchangeSession &session_;
    const ExchangeLayout &layout_;
    StepTrace trace_;
    void *released_ = nullptr;
};

} // namespace ascend_moe
