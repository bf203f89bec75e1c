#include "device.h"

#include "machine.h"

#include <algorithm>
#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>

#include <time.h>
#include <ucontext.h>

namespace ascend_model {
namespace {

constexpr size_t stack_bytes = 256 * 1024;
constexpr size_t most_posted = 48;
constexpr uint64_t line_bytes = 64;

thread_local Device *running_device = nullptr;

bool polled(const Region &region) {
    return region.kind == Region::flags || region.kind == Region::control || region.kind == Region::ends;
}
bool readable(const Region &region) { return region.kind != Region::payload; }
bool writable(const Region &region) { return region.kind != Region::input && region.kind != Region::results; }

uint64_t line_of(uint64_t address) { return address / line_bytes * line_bytes; }

} // namespace

struct Device::Fiber {
    Core core;
    State state = State::ready;
    ucontext_t here;
    ucontext_t scheduler;
    std::unique_ptr<uint8_t[]> stack{new uint8_t[stack_bytes]};
};

Device::Device() = default;
Device::~Device() = default;

Device *Device::current() { return running_device; }

Core &this_core() { return running_device->running_core(); }

Core &Device::running_core() { return fibers_[running_].core; }

void violate(const char *format, ...) {
    char text[512];
    const int begun = snprintf(text, sizeof text, "core %u: ", this_core().index());
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + begun, sizeof text - static_cast<size_t>(begun), format, arguments);
    va_end(arguments);
    running_device->keep_violation(text);
    throw Violation();
}

uint32_t Device::cores() const { return static_cast<uint32_t>(fibers_.size()); }

uint32_t Device::draw(uint32_t bound) {
    random_ = random_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>((random_ >> 33) % bound);
}

bool Device::launch(uint32_t cores, std::vector<Region> memory, const std::function<void()> &kernel,
                    const std::function<void()> &beside) {
    prepare(cores, std::move(memory), kernel);
    beside_ = beside;
    running_device = this;
    schedule();
    finish();
    return violation_.empty();
}

void Device::prepare(uint32_t cores, std::vector<Region> memory, std::function<void()> kernel) {
    memory_ = std::move(memory);
    kernel_ = std::move(kernel);
    beside_ = nullptr;
    accesses_.clear();
    ends_.clear();
    seen_ends_.clear();
    flagged_windows_.clear();
    looked_.assign(cores, false);
    phase_ = 0;
    caches_.assign(cores, {});
    ++launches_;
    workspace_written_.assign(memory_.size(), {});
    for (size_t region = 0; region < memory_.size(); ++region)
        if (memory_[region].kind == Region::workspace)
            workspace_written_[region].resize(memory_[region].bytes);
    fibers_.resize(cores);
    for (uint32_t core = 0; core < cores; ++core) {
        Fiber &fiber = fibers_[core];
        fiber.core.reset(core, delay_ == 0 ? 0 : delay_ + launches_);
        fiber.state = State::ready;
        getcontext(&fiber.here);
        fiber.here.uc_stack.ss_sp = fiber.stack.get();
        fiber.here.uc_stack.ss_size = stack_bytes;
        fiber.here.uc_link = nullptr;
        const auto self = reinterpret_cast<uintptr_t>(this);
        makecontext(&fiber.here, reinterpret_cast<void (*)()>(enter), 3, static_cast<uint32_t>(self >> 32),
                    static_cast<uint32_t>(self), core);
    }
}

void Device::finish() {
    if (violation_.empty())
        check_races();
    costs_.clear();
    for (Fiber &fiber : fibers_)
        costs_.push_back(fiber.core.costs);
    running_device = nullptr;
}

void Device::enter_time(Machine &machine, uint32_t rank) {
    machine_ = &machine;
    rank_ = rank;
    for (Fiber &fiber : fibers_)
        fiber.core.clock.begin(times.kernel_start);
}

double Device::ready_at(uint32_t core) const {
    const Fiber &fiber = fibers_[core];
    return fiber.state == State::ready || fiber.state == State::polling ? fiber.core.clock.now() : -1;
}

void Device::resume(uint32_t core) {
    running_device = this;
    running_ = core;
    swapcontext(&fibers_[core].scheduler, &fibers_[core].here);
    for (const Fiber &fiber : fibers_)
        if (fiber.state == State::ready || fiber.state == State::polling)
            return;
    if (violation_.empty())
        release_barrier();
}

void Device::leave_time() {
    finish();
    machine_ = nullptr;
}

int64_t Device::modelled_time() { return machine_ == nullptr ? -1 : static_cast<int64_t>(running_core().clock.now()); }

void Device::enter(uint32_t high, uint32_t low, uint32_t core) {
    auto *device = reinterpret_cast<Device *>(uint64_t{high} << 32 | low);
    try {
        device->kernel_();
        device->end_core(device->fibers_[core].core);
    } catch (const Violation &) {
    }
    device->switch_away(State::ended);
}

// Runs the cores until all have ended, or one has violated a rule.
void Device::schedule() {
    while (violation_.empty()) {
        std::vector<uint32_t> able;
        bool all_poll = true;
        for (uint32_t core = 0; core < cores(); ++core)
            if (const State state = fibers_[core].state; state == State::ready || state == State::polling) {
                able.push_back(core);
                all_poll = all_poll && state == State::polling;
            }
        if (able.empty()) {
            if (!release_barrier())
                break;
            continue;
        }
        if (all_poll) {
            // Only other ranks can bring this one on.
            if (beside_)
                beside_();
            constexpr timespec nap = {0, 20'000};
            nanosleep(&nap, nullptr);
            for (const uint32_t core : able)
                fibers_[core].state = State::ready;
        } else {
            std::erase_if(able, [&](uint32_t core) { return fibers_[core].state == State::polling; });
        }
        running_ = able[draw(static_cast<uint32_t>(able.size()))];
        swapcontext(&fibers_[running_].scheduler, &fibers_[running_].here);
    }
}

// With no core left to run: lets those at a barrier go on together. False if all have ended.
bool Device::release_barrier() {
    const auto waiting = std::count_if(fibers_.begin(), fibers_.end(),
                                       [](const Fiber &fiber) { return fiber.state == State::at_barrier; });
    if (waiting == 0)
        return false;
    if (static_cast<size_t>(waiting) != fibers_.size()) {
        violation_ = "barrier mismatch: " + std::to_string(waiting) + " of " + std::to_string(fibers_.size()) +
                     " cores wait in SyncAll, the others have ended";
        return true;
    }
    ++phase_;
    double last = 0;
    for (Fiber &fiber : fibers_) {
        fiber.state = State::ready;
        last = std::max(last, fiber.core.clock.drain());
    }
    for (Fiber &fiber : fibers_)
        fiber.core.clock.wait(pipe_s, last + times.core_barrier);
    return true;
}

void Device::switch_away(State state) {
    Fiber &fiber = fibers_[running_];
    fiber.state = state;
    swapcontext(&fiber.here, &fiber.scheduler);
}

void Device::wait_for_all_cores() {
    ++running_core().costs.core_barriers;
    running_core().catch_up();
    switch_away(State::at_barrier);
}

void Device::let_others_run() {
    running_core().clock.pass(times.scalar_buffer);
    // In time an instruction takes effect, and a store becomes visible, even if nothing waits for it.
    running_core().catch_up();
    if (Core &core = running_core(); !core.posted.empty())
        publish_one(core);
    switch_away(State::polling);
}

void Device::begin_copy() {
    if (machine_ != nullptr)
        switch_away(State::ready);
}

double Device::charge_copy(Core &core, Pipe pipe, uint64_t address, uint32_t count, uint64_t bytes, uint64_t gap) {
    const auto granule = static_cast<uint64_t>(times.granule);
    uint64_t touched = 0, next = 0; // granules, and the first behind those counted
    for (uint32_t block = 0; block < count; ++block) {
        const uint64_t begin = address + block * (bytes + gap);
        const uint64_t first = std::max(next, begin / granule), end = (begin + bytes + granule - 1) / granule;
        touched += end > first ? end - first : 0;
        next = std::max(next, end);
    }
    const auto moved = static_cast<double>(touched * granule);
    const bool store = pipe == pipe_mte3;
    const Region *region = find_region(address);
    const uint32_t owner = region != nullptr && region->remote ? region->window : rank_;
    const double start = core.clock.start(pipe);
    const double bandwidth = store ? times.store_bandwidth : times.load_bandwidth;
    double end = start + times.copy_start + moved / bandwidth;
    if (machine_ != nullptr)
        end = std::max(end, machine_->share(start, moved, rank_, owner, store));
    const double own = store ? times.store_latency : times.load_latency;
    const double remote = store ? times.remote_store_latency : times.remote_load_latency;
    return core.clock.occupy(pipe, start, end, owner == rank_ ? own : remote);
}

const Region *Device::find_region(uint64_t address) const {
    for (const Region &region : memory_)
        if (address >= region.begin && address < region.begin + region.bytes)
            return &region;
    return nullptr;
}

uint32_t Device::region_of(uint64_t address, uint64_t bytes, bool write, const char *what) const {
    for (uint32_t index = 0; index < memory_.size(); ++index) {
        const Region &region = memory_[index];
        if (address < region.begin || address + bytes > region.begin + region.bytes)
            continue;
        if (write ? !writable(region) : !readable(region) && !may_have_arrived(region))
            violate("%s: region %s of window %u must not be %s", what, region.name, region.window,
                    write ? "written" : "read");
        return index;
    }
    violate("%s: %llu bytes of global memory that lie in no region this kernel may use", what,
            static_cast<unsigned long long>(bytes));
}

// Rows of the own window are their owner's once it has looked at the flags.
bool Device::may_have_arrived(const Region &region) const {
    return region.kind == Region::payload && !region.remote && looked_[running_];
}

void Device::note(const Core &core, uint64_t begin, uint64_t bytes, uint32_t region, bool write) {
    uint64_t end = begin + bytes;
    if (write && memory_[region].exclusive_lines) {
        begin = line_of(begin);
        end = line_of(end + line_bytes - 1);
    }
    accesses_.push_back({begin, end, core.index(), phase_, region, write, accesses_.size()});
}

// A core that has ended has nothing under way.
void Device::note_end(Core &core, const Region &ends, uint64_t to, const uint8_t *word) {
    if (!core.posted.empty() || !core.is_last(pipe_mte3))
        violate("%s are stored to while earlier loads or stores of the core are under way", ends.name);
    End end = {core.index(), to, 0, accesses_.size()};
    memcpy(&end.word, word, sizeof end.word);
    ends_.push_back(end);
}

// What a core makes of the words that it loads is seen by the accounting of the unified buffer.
void Device::note_seen_ends(const Core &core, uint64_t from, const uint8_t *loaded, uint64_t bytes) {
    for (const End &end : ends_) {
        const bool is_known = std::any_of(seen_ends_.begin(), seen_ends_.end(), [&](const SeenEnd &seen) {
            return seen.by == core.index() && seen.end.core == end.core;
        });
        if (!is_known && from <= end.address && end.address + sizeof end.word <= from + bytes &&
            memcmp(&end.word, loaded + (end.address - from), sizeof end.word) == 0)
            seen_ends_.push_back({core.index(), end, accesses_.size()});
    }
}

void Device::check_running(const Core &core, const char *what) const {
    for (const End &end : ends_)
        if (end.core == core.index())
            violate("%s after it has told that it ends", what);
}

void Device::check_posted(uint64_t begin, uint64_t bytes, const char *what) const {
    for (const Fiber &fiber : fibers_)
        for (const PostedStore &store : fiber.core.posted) {
            const auto target = reinterpret_cast<uint64_t>(store.target);
            if (begin < target + store.bytes.size() && target < begin + bytes)
                violate("%s of %s, while a store of core %u to it is not yet visible", what, memory_[store.region].name,
                        fiber.core.index());
        }
}

bool Device::load(Core &core, uint8_t *to, uint64_t from, uint64_t bytes) {
    const uint32_t index = region_of(from, bytes, false, "load");
    const Region &region = memory_[index];
    check_running(core, "loads");
    if (!polled(region))
        check_posted(from, bytes, "load");
    for (const auto &[line, cached] : caches_[core.index()])
        if (cached.dirty != 0 && line < from + bytes && from < line + line_bytes)
            violate("load of %s, which the scalar cache holds changed", region.name);
    if (region.kind == Region::workspace)
        for (uint64_t byte = from - region.begin; byte < from - region.begin + bytes; ++byte)
            if (!workspace_written_[index][byte])
                violate("load of byte %llu of %s, which nobody wrote", static_cast<unsigned long long>(byte),
                        region.name);
    if (region.kind == Region::workspace || region.kind == Region::output || region.kind == Region::payload)
        note(core, from, bytes, index, false);
    if (region.kind == Region::flags)
        looked_[core.index()] = true;
    if (!polled(region)) {
        (region.rows ? core.costs.loaded_row_bytes : core.costs.loaded_other_bytes) += bytes;
        memcpy(to, reinterpret_cast<const void *>(from), bytes);
        return false;
    }
    // An aligned unit of 32 bytes is loaded whole: its word first, as whoever stored it made it visible last.
    for (uint64_t unit = 0; unit < bytes; unit += block_bytes) {
        const uint64_t length = std::min<uint64_t>(block_bytes, bytes - unit);
        if ((from + unit) % sizeof(uint64_t) == 0 && length >= sizeof(uint64_t)) {
            auto *word = reinterpret_cast<uint64_t *>(from + unit);
            const uint64_t seen = std::atomic_ref<uint64_t>(*word).load(std::memory_order_acquire);
            memcpy(to + unit, &seen, sizeof seen);
            memcpy(to + unit + sizeof seen, word + 1, length - sizeof seen);
        } else {
            memcpy(to + unit, reinterpret_cast<const void *>(from + unit), length);
        }
    }
    if (region.kind == Region::ends)
        note_seen_ends(core, from, to, bytes);
    return true;
}

// A flag tells its window's owner that everything stored to that window is there.
void Device::check_flag_order(const Core &core, const Region &flag) const {
    for (const Fiber &fiber : fibers_)
        for (const PostedStore &store : fiber.core.posted)
            if (memory_[store.region].window == flag.window && memory_[store.region].kind == Region::payload)
                violate("flag %s of window %u is stored while a row of core %u is not yet visible there", flag.name,
                        flag.window, fiber.core.index());
    for (const Access &access : accesses_)
        if (access.write && access.core != core.index() && access.phase == phase_ &&
            memory_[access.region].kind == Region::payload && memory_[access.region].window == flag.window)
            violate("flag %s of window %u is stored without a barrier after the rows of core %u", flag.name,
                    flag.window, access.core);
}

void Device::store(Core &core, uint64_t to, const uint8_t *from, uint64_t bytes, double visible) {
    const uint32_t index = region_of(to, bytes, true, "store");
    const Region &region = memory_[index];
    check_running(core, "stores");
    if (region.kind == Region::ends)
        note_end(core, region, to, from);
    if (region.kind == Region::flags) {
        check_flag_order(core, region);
        flagged_windows_.push_back(region.window);
    }
    if (region.kind == Region::payload && !may_have_arrived(region) &&
        std::find(flagged_windows_.begin(), flagged_windows_.end(), region.window) != flagged_windows_.end())
        violate("store to %s of window %u after the flag that announces it", region.name, region.window);
    if (region.kind == Region::workspace)
        std::fill_n(workspace_written_[index].begin() + static_cast<int64_t>(to - region.begin), bytes, true);
    note(core, to, bytes, index, true);
    (region.rows ? core.costs.stored_row_bytes : core.costs.stored_other_bytes) += bytes;
    post(core, to, index, from, bytes, visible);
}

// Words and units become visible one by one; a row at once, for nobody looks at it before the word that announces it.
void Device::post(Core &core, uint64_t to, uint32_t region, const uint8_t *from, uint64_t bytes, double visible) {
    if (machine_ != nullptr && polled(memory_[region])) {
        machine_->deliver(visible, reinterpret_cast<uint8_t *>(to), from, bytes);
        return;
    }
    const uint64_t piece = polled(memory_[region]) ? uint64_t{block_bytes} : bytes;
    for (uint64_t begin = 0; begin < bytes; begin += piece) {
        const uint64_t end = std::min(begin + piece, bytes);
        core.posted.push_back({reinterpret_cast<uint8_t *>(to + begin), region, {from + begin, from + end}});
        if (core.posted.size() > most_posted)
            publish_one(core);
    }
}

// A unit's word is made visible after the rest of it, so that a load that takes the word first sees it whole.
void Device::publish_one(Core &core) {
    std::swap(core.posted[draw(static_cast<uint32_t>(core.posted.size()))], core.posted.back());
    const PostedStore &store = core.posted.back();
    const size_t bytes = store.bytes.size();
    if (polled(memory_[store.region]) && bytes >= sizeof(uint64_t) &&
        reinterpret_cast<uintptr_t>(store.target) % sizeof(uint64_t) == 0) {
        uint64_t word;
        memcpy(&word, store.bytes.data(), sizeof word);
        memcpy(store.target + sizeof word, store.bytes.data() + sizeof word, bytes - sizeof word);
        std::atomic_ref<uint64_t>(*reinterpret_cast<uint64_t *>(store.target)).store(word, std::memory_order_release);
    } else {
        memcpy(store.target, store.bytes.data(), bytes);
    }
    core.posted.pop_back();
}

void Device::make_visible(Core &core) {
    while (!core.posted.empty())
        publish_one(core);
}

uint8_t *Device::cached(Core &core, uint64_t address, uint64_t bytes, bool write) {
    const uint32_t index = region_of(address, bytes, write, write ? "scalar store" : "scalar load");
    const Region &region = memory_[index];
    const uint64_t line = line_of(address);
    if (address + bytes > line + line_bytes)
        violate("scalar access of %s crosses a cache line", region.name);
    auto [entry, fresh] = caches_[core.index()].try_emplace(line);
    ++core.costs.scalar_accesses;
    core.clock.pass(times.scalar_cached + (fresh ? times.load_latency : 0));
    CachedLine &cached = entry->second;
    if (fresh) {
        check_posted(address, bytes, "scalar load");
        memcpy(cached.bytes, reinterpret_cast<const void *>(line), line_bytes);
        memcpy(cached.seen, cached.bytes, line_bytes);
    } else if (!write && memcmp(cached.seen + (address - line), reinterpret_cast<const void *>(address), bytes) != 0) {
        violate("scalar load of %s hits a cached line that has changed in memory: invalidate it first", region.name);
    }
    if (region.kind == Region::workspace && !write && cached.dirty == 0)
        for (uint64_t byte = 0; byte < bytes; ++byte)
            if (!workspace_written_[index][address - region.begin + byte])
                violate("scalar load of %s, which nobody wrote", region.name);
    if (write) {
        for (uint64_t byte = 0; byte < bytes; ++byte)
            cached.dirty |= uint64_t{1} << (address - line + byte);
        accesses_.push_back({line, line + line_bytes, core.index(), phase_, index, true, accesses_.size()});
    } else if (region.kind == Region::workspace || region.kind == Region::output) {
        note(core, address, bytes, index, false);
    }
    return cached.bytes + (address - line);
}

void Device::clean_line(Core &core, uint64_t address) {
    const auto entry = caches_[core.index()].find(line_of(address));
    if (entry == caches_[core.index()].end())
        return;
    for (uint64_t byte = 0; byte < line_bytes; ++byte)
        if (entry->second.dirty >> byte & 1) {
            *reinterpret_cast<uint8_t *>(entry->first + byte) = entry->second.bytes[byte];
            for (uint32_t index = 0; index < memory_.size(); ++index)
                if (const uint64_t at = entry->first + byte - memory_[index].begin;
                    memory_[index].kind == Region::workspace && at < memory_[index].bytes)
                    workspace_written_[index][at] = true;
        }
    caches_[core.index()].erase(entry);
}

void Device::end_core(Core &core) {
    core.check_end();
    core.catch_up();
    for (const auto &[line, cached] : caches_[core.index()])
        if (cached.dirty != 0)
            violate("the kernel ends with a scalar store that no cache maintenance wrote back");
    make_visible(core);
    core.end_time();
}

// Whether one core had ended, and the other seen it, between two accesses.
bool Device::are_ordered(const Access &one, const Access &other) const {
    const auto &[early, late] =
        std::minmax(one, other, [](const Access &a, const Access &b) { return a.number < b.number; });
    return std::any_of(seen_ends_.begin(), seen_ends_.end(), [&](const SeenEnd &seen) {
        return seen.end.core == early.core && early.number < seen.end.after && seen.by == late.core &&
               seen.at <= late.number;
    });
}

// Two cores met in the same bytes, one of them writing, with neither SyncAll nor an end between.
void Device::check_races() {
    std::sort(accesses_.begin(), accesses_.end(),
              [](const Access &one, const Access &other) { return one.begin < other.begin; });
    std::vector<Access> open;
    for (const Access &access : accesses_) {
        std::erase_if(open, [&](const Access &earlier) { return earlier.end <= access.begin; });
        for (const Access &other : open)
            if (other.core != access.core && other.phase == access.phase && (other.write || access.write) &&
                !are_ordered(other, access)) {
                violation_ = "cores " + std::to_string(other.core) + " and " + std::to_string(access.core) +
                             " meet in " + memory_[access.region].name + " of window " +
                             std::to_string(memory_[access.region].window) + " without a barrier between them";
                return;
            }
        open.push_back(access);
    }
}

} // namespace ascend_model
