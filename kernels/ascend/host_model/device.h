// A modelled device: global memory as one launch may use it, and the launch itself.
//
// Cores run one at a time, in an order drawn from a fixed seed, and change places only where a kernel waits: the same
// launch makes the same choices again. Stores are held back until a barrier of their pipe, and then become visible in
// any order, so that a peer sees what a fabric could show it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core.h"

namespace ascend_model {

// Seed of the delayed mode (late_effects.h), 0: none. Given when delay.cpp is compiled.
extern const uint64_t default_delay;

// Who may do what with a piece of global memory.
struct Region {
    enum Kind {
        input,     // read only
        output,    // written, and read back
        workspace, // of this launch: reading what no core wrote is an error
        ends,      // words of which each is the last that a core does: who sees one comes after all that
        flags,     // in a window: every store announces what was stored to that window before
        payload,   // in a window: must not be stored to after the flag, nor read; the own by cores that look at flags
        control,   // in a window: self-contained units that announce nothing else
        results    // in a window, read only
    };
    const char *name;
    Kind kind;
    uint64_t begin;
    uint64_t bytes;
    uint32_t window;      // rank, where the region is in a window
    bool exclusive_lines; // a 64-byte line has one writer
    bool rows;            // counted as payload in the costs
    bool remote = false;  // in the memory of the rank `window`
};

class Machine;

class Device {
  public:
    // Runs `kernel` on `cores` cores. Returns false after a violation, which violation() tells.
    // `beside` is called again and again while all cores wait for other ranks: what the host does beside the device.
    bool launch(uint32_t cores, std::vector<Region> memory, const std::function<void()> &kernel,
                const std::function<void()> &beside = nullptr);
    // Makes a launch ready, which a machine runs then (machine.h).
    void prepare(uint32_t cores, std::vector<Region> memory, std::function<void()> kernel);

    Device();
    ~Device();
    Device(const Device &) = delete;
    Device &operator=(const Device &) = delete;

    // Called by the machine: the device that its launch belongs to, of `rank`; when a core can run, or -1; runs it
    // until it waits.
    void enter_time(Machine &machine, uint32_t rank);
    double ready_at(uint32_t core) const;
    void resume(uint32_t core);
    void leave_time();

    const std::string &violation() const { return violation_; }
    const std::vector<CoreCosts> &costs() const { return costs_; }

    // Called by the modelled instructions of the core that runs.
    // Returns whether the bytes are words that others may store meanwhile, as waits load them.
    bool load(Core &core, uint8_t *to, uint64_t from, uint64_t bytes);
    void store(Core &core, uint64_t to, const uint8_t *from, uint64_t bytes, double visible);
    // In modelled time, lets the cores that are behind go first.
    void begin_copy();
    // Charges a copy of `count` blocks of `bytes`, `gap` bytes apart in global memory; returns when it is done.
    double charge_copy(Core &core, Pipe pipe, uint64_t address, uint32_t count, uint64_t bytes, uint64_t gap);
    // Of the core that runs, in ns; -1: it has none.
    int64_t modelled_time();
    void make_visible(Core &core);
    uint8_t *cached(Core &core, uint64_t address, uint64_t bytes, bool write);
    void clean_line(Core &core, uint64_t address);
    void wait_for_all_cores();
    void let_others_run();
    uint32_t cores() const;

    Core &running_core();

    static Device *current();
    void keep_violation(const char *text) { violation_ = text; }

  private:
    enum class State { ready, polling, at_barrier, ended };
    struct Fiber;
    struct Access {
        uint64_t begin, end;
        uint32_t core, phase, region;
        bool write;
        size_t number;
    };
    // The word that a core has ended with, after so many accesses of all cores.
    struct End {
        uint32_t core;
        uint64_t address, word;
        size_t after;
    };
    // So many accesses had been made when a core saw the end of another.
    struct SeenEnd {
        uint32_t by;
        End end;
        size_t at;
    };
    struct CachedLine {
        uint8_t bytes[64];
        uint8_t seen[64]; // memory when the line was read
        uint64_t dirty;   // bit per byte
    };

    static void enter(uint32_t high, uint32_t low, uint32_t core);
    void schedule();
    void switch_away(State state);
    bool release_barrier();
    uint32_t region_of(uint64_t address, uint64_t bytes, bool write, const char *what) const;
    bool may_have_arrived(const Region &region) const;
    void note(const Core &core, uint64_t begin, uint64_t bytes, uint32_t region, bool write);
    void check_flag_order(const Core &core, const Region &flag) const;
    void note_end(Core &core, const Region &ends, uint64_t to, const uint8_t *word);
    void note_seen_ends(const Core &core, uint64_t from, const uint8_t *loaded, uint64_t bytes);
    void check_running(const Core &core, const char *what) const;
    bool are_ordered(const Access &one, const Access &other) const;
    void check_posted(uint64_t begin, uint64_t bytes, const char *what) const;
    void check_races();
    void post(Core &core, uint64_t to, uint32_t region, const uint8_t *from, uint64_t bytes, double visible);
    void finish();
    const Region *find_region(uint64_t address) const;
    void publish_one(Core &core);
    void end_core(Core &core);
    uint32_t draw(uint32_t bound);

    std::vector<Region> memory_;
    std::vector<Fiber> fibers_;
    std::vector<Access> accesses_;
    std::vector<End> ends_;
    std::vector<SeenEnd> seen_ends_;
    std::vector<std::unordered_map<uint64_t, CachedLine>> caches_; // per core
    std::vector<std::vector<bool>> workspace_written_;             // per region, per byte
    std::vector<CoreCosts> costs_;
    std::vector<uint32_t> flagged_windows_;
    std::vector<bool> looked_; // per core, at flags
    std::function<void()> kernel_, beside_;
    Machine *machine_ = nullptr;
    uint32_t rank_ = 0;
    std::string violation_;
    uint64_t delay_ = default_delay;
    uint64_t launches_ = 0;
    uint32_t running_ = 0;
    uint32_t phase_ = 0;
    uint64_t random_ = 0;
};

} // namespace ascend_model
