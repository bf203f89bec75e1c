#include "core.h"

#include <algorithm>
#include <cstring>

namespace ascend_model {
namespace {

constexpr uint32_t most_buffers = 64;

const char *name_of(Pipe pipe) {
    constexpr const char *names[] = {"S", "V", "MTE2", "MTE3"};
    return names[pipe];
}

void join(Clock &clock, const Clock &other) {
    for (uint32_t pipe = 0; pipe < pipe_count; ++pipe)
        clock[pipe] = std::max(clock[pipe], other[pipe]);
}

} // namespace

void Core::reset(uint32_t index, uint64_t delay) {
    index_ = index;
    late_.reset(delay == 0 ? 0 : delay * 0x9e3779b97f4a7c15 + index + 1);
    costs = {};
    posted.clear();
    allocated_ = 0;
    issued_ = {};
    known_ = {};
    events_ = {};
    ub_.assign(ub_capacity, 0xa5);
    defined_.assign(ub_capacity, 0);
    history_.assign(ub_capacity / block_bytes, BlockHistory{});
}

void Core::issue(Pipe pipe) {
    ++issued_[pipe];
    if (pipe == pipe_s) {
        known_[pipe_s][pipe_s] = issued_[pipe_s];
        return;
    }
    // The scalar unit issues in order: what it waited for is done. Its own accesses need an event all the same.
    const uint32_t scalar = known_[pipe][pipe_s];
    join(known_[pipe], known_[pipe_s]);
    known_[pipe][pipe_s] = scalar;
}

bool Core::knows(Pipe pipe, Pipe other, uint32_t instruction) const {
    return late_.are_late() || instruction <= known_[pipe][other] || (pipe == other && instruction == issued_[pipe]);
}

bool Core::is_last(Pipe pipe) const {
    if (late_.are_late())
        return true;
    for (uint32_t other = pipe_v; other < pipe_count; ++other)
        if (known_[pipe][other] + (other == static_cast<uint32_t>(pipe) ? 1 : 0) < issued_[other])
            return false;
    return true;
}

void Core::check_range(uint32_t offset, uint32_t bytes, const char *what) const {
    if (uint64_t{offset} + bytes > allocated_)
        violate("%s: bytes %u..%u of the unified buffer, of which %u are allocated", what, offset, offset + bytes,
                allocated_);
}

void Core::read(Pipe pipe, uint32_t offset, uint32_t bytes, const char *what) {
    if (bytes == 0)
        return;
    check_range(offset, bytes, what);
    if (memchr(defined_.data() + offset, 0, bytes) != nullptr)
        violate("%s reads bytes of the unified buffer that nobody wrote (offset %u, %u bytes)", what, offset, bytes);
    for (uint32_t block = offset / block_bytes; block <= (offset + bytes - 1) / block_bytes; ++block) {
        BlockHistory &history = history_[block];
        if (!knows(pipe, history.writer, history.written))
            violate("%s on pipe %s reads what %s wrote without waiting for it (unified buffer offset %u)", what,
                    name_of(pipe), name_of(history.writer), block * block_bytes);
        history.read[pipe] = issued_[pipe];
    }
}

void Core::write(Pipe pipe, uint32_t offset, uint32_t bytes, const char *what) {
    if (bytes == 0)
        return;
    check_range(offset, bytes, what);
    memset(defined_.data() + offset, 1, bytes);
    for (uint32_t block = offset / block_bytes; block <= (offset + bytes - 1) / block_bytes; ++block) {
        BlockHistory &history = history_[block];
        if (!knows(pipe, history.writer, history.written))
            violate("%s on pipe %s overwrites what %s writes without waiting for it (unified buffer offset %u)", what,
                    name_of(pipe), name_of(history.writer), block * block_bytes);
        for (uint32_t reader = 0; reader < pipe_count; ++reader)
            if (!knows(pipe, static_cast<Pipe>(reader), history.read[reader]))
                violate("%s on pipe %s overwrites what %s still reads (unified buffer offset %u)", what, name_of(pipe),
                        name_of(static_cast<Pipe>(reader)), block * block_bytes);
        history.writer = pipe;
        history.written = issued_[pipe];
    }
}

void Core::mark_undefined(uint32_t offset, uint32_t bytes) { memset(defined_.data() + offset, 0, bytes); }

void Core::charge_scalar() {
    clock.pass(times.scalar_buffer);
    ++costs.scalar_accesses;
}

void Core::charge_vector(uint64_t bytes, VectorCost cost) {
    constexpr uint64_t repeat_bytes = 256;
    const double of_repeat[] = {times.vector_unary, times.vector_binary, times.vector_sum, times.vector_gather};
    double cycles = of_repeat[static_cast<int>(cost)] * static_cast<double>((bytes + repeat_bytes - 1) / repeat_bytes);
    const double start = clock.start(pipe_v);
    if (clock.is_idle(pipe_v))
        cycles += times.vector_head;
    if (bytes % repeat_bytes != 0)
        cycles += times.vector_odd;
    clock.occupy(pipe_v, start, start + cycles / times.clock, times.vector_tail / times.clock);
}

void Core::end_time() {
    costs.ended = static_cast<uint64_t>(clock.drain());
    const auto &busy = clock.busy();
    costs.busy_scalar = static_cast<uint64_t>(busy[pipe_s]);
    costs.busy_vector = static_cast<uint64_t>(busy[pipe_v]);
    costs.busy_loads = static_cast<uint64_t>(busy[pipe_mte2]);
    costs.busy_stores = static_cast<uint64_t>(busy[pipe_mte3]);
}

void Core::barrier(Pipe pipe) {
    if (pipe == pipe_s)
        violate("PipeBarrier<PIPE_S> is a hardware error");
    ++costs.pipe_barriers;
    clock.pass(times.event);
    clock.wait(pipe, clock.done(pipe));
    known_[pipe][pipe] = issued_[pipe];
}

void Core::barrier_all() {
    ++costs.pipe_barriers;
    clock.pass(times.event);
    clock.drain();
    for (Clock &known : known_)
        known = issued_;
    late_.make_all();
}

Core::Event &Core::event(Pipe from, Pipe to, uint32_t id) {
    if (id >= event_ids)
        violate("event id %u of %s_%s: there are %u", id, name_of(from), name_of(to), event_ids);
    return events_[from * pipe_count + to][id];
}

void Core::set_event(Pipe from, Pipe to, uint32_t id) {
    Event &flag = event(from, to, id);
    if (flag.set)
        violate("event %s_%s id %u is set again before anyone waited for it", name_of(from), name_of(to), id);
    flag.set = true;
    flag.clock = known_[from];
    flag.clock[from] = issued_[from];
    clock.pass(times.event);
    flag.at = clock.done(from);
}

void Core::wait_event(Pipe from, Pipe to, uint32_t id) {
    Event &flag = event(from, to, id);
    if (!flag.set)
        violate("wait for event %s_%s id %u, which nobody set: a device hangs here", name_of(from), name_of(to), id);
    flag.set = false;
    clock.pass(times.event);
    clock.wait(to, flag.at);
    join(known_[to], flag.clock);
    if (to == pipe_s)
        late_.make(known_[pipe_s]);
}

uint32_t Core::free_event(Pipe from, Pipe to) const {
    const auto &list = events_[from * pipe_count + to];
    for (uint32_t id = 0; id < event_ids; ++id)
        if (!list[id].allocated)
            return id;
    violate("all %u events of %s_%s are in use", event_ids, name_of(from), name_of(to));
}

uint32_t Core::allocate_event(Pipe from, Pipe to) {
    const uint32_t id = free_event(from, to);
    event(from, to, id).allocated = true;
    return id;
}

void Core::release_event(Pipe from, Pipe to, uint32_t id) {
    Event &flag = event(from, to, id);
    if (!flag.allocated)
        violate("event %s_%s id %u is released but was not allocated", name_of(from), name_of(to), id);
    flag.allocated = false;
}

uint32_t Core::allocate_ub(uint32_t bytes) {
    if (++costs.ub_buffers > most_buffers)
        violate("a kernel has at most %u buffers", most_buffers);
    const uint32_t offset = allocated_;
    const uint32_t rounded = (bytes + block_bytes - 1) / block_bytes * block_bytes;
    if (bytes == 0 || rounded > ub_capacity - allocated_)
        violate("a buffer of %u bytes does not fit the unified buffer: %u of %u are taken", bytes, allocated_,
                ub_capacity);
    allocated_ += rounded;
    costs.ub_high_water = std::max<uint64_t>(costs.ub_high_water, allocated_);
    return offset;
}

void Core::check_end() const {
    for (uint32_t pair = 0; pair < events_.size(); ++pair)
        for (uint32_t id = 0; id < event_ids; ++id)
            if (events_[pair][id].set)
                violate("the kernel ends with event %s_%s id %u set and not waited for",
                        name_of(static_cast<Pipe>(pair / pipe_count)), name_of(static_cast<Pipe>(pair % pipe_count)),
                        id);
}

} // namespace ascend_model
