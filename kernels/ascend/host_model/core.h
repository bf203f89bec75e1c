// One modelled AIV core: its unified buffer, its four pipes, and what each pipe may rely on.
//
// Instructions take effect as soon as they are issued, but every access to the unified buffer is checked against
// vector clocks: a pipe may touch bytes of another instruction only after an event, a barrier or the order of its own
// pipe has said that the instruction is done. What a device would do wrong sometimes is reported always. In the delayed
// mode instructions take effect late instead (late_effects.h), and these accesses are not checked.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "core_clock.h"
#include "late_effects.h"

namespace ascend_model {

// CANN keeps 8 KB for itself, and 256 bytes.
constexpr uint32_t ub_capacity = 184 * 1024 - 256;
constexpr uint32_t block_bytes = 32;
constexpr uint32_t event_ids = 8;

struct Violation {};

// Ends the launch: the kernel does what a device would punish, or not defines.
[[noreturn, gnu::format(printf, 1, 2)]] void violate(const char *format, ...);

// What a vector instruction costs for every 256 bytes.
enum class VectorCost { one_operand, two_operands, sum, gather };

// What a launch cost one core.
struct CoreCosts {
    uint64_t loaded_row_bytes;   // rows through MTE2
    uint64_t stored_row_bytes;   // rows through MTE3
    uint64_t loaded_other_bytes; // without what waits load again and again
    uint64_t stored_other_bytes;
    uint64_t loads; // without those of waits
    uint64_t stores;
    uint64_t vector_instructions;
    uint64_t pipe_barriers;
    uint64_t core_barriers; // SyncAll
    uint64_t ub_high_water;
    uint64_t ub_buffers;
    uint64_t scalar_accesses; // of the unified buffer and of global memory, by the scalar unit
    // In modelled time (machine.h), in ns; else 0.
    uint64_t ended;
    uint64_t busy_scalar, busy_vector, busy_loads, busy_stores;
};

// A store to global memory that nothing has made visible yet.
struct PostedStore {
    uint8_t *target;
    uint32_t region; // index in the launch's memory map
    std::vector<uint8_t> bytes;
};

class Core {
  public:
    // delay: of the delayed mode, drawn anew for each core; 0: none.
    void reset(uint32_t index, uint64_t delay);

    uint32_t index() const { return index_; }
    uint8_t *ub() { return ub_.data(); }
    CoreCosts costs = {};
    CoreClock clock;
    void *pipe_object = nullptr; // the kernel's
    std::vector<PostedStore> posted;

    // Begins an instruction of `pipe`: it may rely on what the scalar unit had seen done when it issued it.
    void issue(Pipe pipe);
    // What the current instruction of `pipe` does, now or late.
    template <class Effect> void effect(Pipe pipe, Effect make) {
        if (late_.are_late())
            late_.put(pipe, issued_[pipe], known_[pipe], std::move(make));
        else
            make();
    }
    // Everything that was issued takes effect.
    void catch_up() { late_.make_all(); }
    // The current instruction of `pipe` reads, or writes, [offset, offset + bytes) of the unified buffer.
    void read(Pipe pipe, uint32_t offset, uint32_t bytes, const char *what);
    void write(Pipe pipe, uint32_t offset, uint32_t bytes, const char *what);
    // Whether everything that was issued is known to be done before the instruction that `pipe` began last.
    bool is_last(Pipe pipe) const;
    // Bytes of the last write that hold nothing defined (padding).
    void mark_undefined(uint32_t offset, uint32_t bytes);
    // Charges an access of the unified buffer by the scalar unit, or a vector instruction on `bytes` of its widest
    // operand.
    void charge_scalar();
    void charge_vector(uint64_t bytes, VectorCost cost);
    // Notes when the last instruction was done.
    void end_time();

    void barrier(Pipe pipe);
    void barrier_all();
    void set_event(Pipe from, Pipe to, uint32_t id);
    void wait_event(Pipe from, Pipe to, uint32_t id);

    uint32_t allocate_event(Pipe from, Pipe to);
    void release_event(Pipe from, Pipe to, uint32_t id);
    uint32_t free_event(Pipe from, Pipe to) const;

    uint32_t allocate_ub(uint32_t bytes);
    void check_end() const;

  private:
    struct Event {
        bool allocated = false;
        bool set = false;
        Clock clock = {};
        double at = 0;
    };
    struct BlockHistory {
        Pipe writer;
        uint32_t written; // instruction of `writer`
        Clock read;       // last reading instruction of each pipe
    };

    Event &event(Pipe from, Pipe to, uint32_t id);
    void check_range(uint32_t offset, uint32_t bytes, const char *what) const;
    bool knows(Pipe pipe, Pipe other, uint32_t instruction) const;

    uint32_t index_ = 0;
    uint32_t allocated_ = 0;
    Clock issued_ = {};
    std::array<Clock, pipe_count> known_ = {};
    LateEffects late_;
    std::array<std::array<Event, event_ids>, pipe_count * pipe_count> events_;
    std::vector<uint8_t> ub_;
    std::vector<uint8_t> defined_; // per byte
    std::vector<BlockHistory> history_;
};

// The core whose kernel runs right now.
Core &this_core();

} // namespace ascend_model
