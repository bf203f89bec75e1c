// Tensors, buffers, queues and events of the Ascend C subset, over the modelled core.
#pragma once

#include <cstdint>
#include <cstring>
#include <exception>

#include "device.h"

// A check that gives them a meaning has defined them before.
#ifndef __gm__
#define __aicore__
#define __global__
#define __gm__
#endif

namespace AscendC {

using ascend_model::Pipe;
using TEventID = int8_t;
using half = _Float16;

struct bfloat16_t {
    uint16_t bits;
};

enum class TPosition { GM, VECIN, VECOUT, VECCALC };
using QuePosition = TPosition;

enum class HardEvent { MTE2_V, V_MTE2, MTE3_V, V_MTE3, MTE2_MTE3, MTE3_MTE2, S_V, V_S, S_MTE2, MTE2_S, S_MTE3, MTE3_S };

enum pipe_t { PIPE_S, PIPE_V, PIPE_MTE2, PIPE_MTE3, PIPE_ALL };

struct EventEnds {
    Pipe from, to;
};

constexpr EventEnds ends_of(HardEvent event) {
    using namespace ascend_model;
    constexpr EventEnds ends[] = {{pipe_mte2, pipe_v}, {pipe_v, pipe_mte2},    {pipe_mte3, pipe_v},
                                  {pipe_v, pipe_mte3}, {pipe_mte2, pipe_mte3}, {pipe_mte3, pipe_mte2},
                                  {pipe_s, pipe_v},    {pipe_v, pipe_s},       {pipe_s, pipe_mte2},
                                  {pipe_mte2, pipe_s}, {pipe_s, pipe_mte3},    {pipe_mte3, pipe_s}};
    return ends[static_cast<int>(event)];
}

// Buffers and copies take whole blocks of 32 bytes.
inline uint32_t padded(uint32_t bytes) { return (bytes + 31) / 32 * 32; }

template <class T> class LocalTensor {
  public:
    LocalTensor() = default;
    LocalTensor(uint32_t offset, uint32_t bytes) : offset_(offset), bytes_(bytes) {}

    LocalTensor operator[](uint32_t element) const {
        if (uint64_t{element} * sizeof(T) > bytes_)
            ascend_model::violate("element %u lies behind the buffer of %u bytes", element, bytes_);
        const auto skipped = static_cast<uint32_t>(element * sizeof(T));
        return {offset_ + skipped, bytes_ - skipped};
    }
    template <class U> LocalTensor<U> ReinterpretCast() const { return {offset_, bytes_}; }

    T GetValue(uint32_t element) const {
        ascend_model::Core &core = scalar_core();
        const uint32_t at = place(element);
        core.read(ascend_model::pipe_s, at, sizeof(T), "GetValue");
        T value;
        memcpy(&value, core.ub() + at, sizeof(T));
        return value;
    }
    void SetValue(uint32_t element, T value) const {
        ascend_model::Core &core = scalar_core();
        const uint32_t at = place(element);
        core.write(ascend_model::pipe_s, at, sizeof(T), "SetValue");
        memcpy(core.ub() + at, &value, sizeof(T));
    }

    uint32_t offset() const { return offset_; }
    uint32_t bytes() const { return bytes_; }

  private:
    static ascend_model::Core &scalar_core() {
        ascend_model::Core &core = ascend_model::this_core();
        core.issue(ascend_model::pipe_s);
        core.charge_scalar();
        return core;
    }
    uint32_t place(uint32_t element) const {
        if ((uint64_t{element} + 1) * sizeof(T) > bytes_)
            ascend_model::violate("element %u lies outside the buffer of %u bytes", element, bytes_);
        return static_cast<uint32_t>(offset_ + element * sizeof(T));
    }

    uint32_t offset_ = 0;
    uint32_t bytes_ = 0;
};

template <class T> class GlobalTensor {
  public:
    void SetGlobalBuffer(__gm__ T *address, uint64_t = 0) { address_ = reinterpret_cast<uint64_t>(address); }

    GlobalTensor operator[](uint64_t element) const {
        GlobalTensor part;
        part.address_ = address_ + element * sizeof(T);
        return part;
    }
    // Through the scalar cache.
    T GetValue(uint64_t element) const {
        T value;
        memcpy(&value, cached(element, false), sizeof(T));
        return value;
    }
    void SetValue(uint64_t element, T value) const { memcpy(cached(element, true), &value, sizeof(T)); }

    uint64_t address() const { return address_; }

  private:
    uint8_t *cached(uint64_t element, bool write) const {
        ascend_model::Core &core = ascend_model::this_core();
        core.issue(ascend_model::pipe_s);
        return ascend_model::Device::current()->cached(core, address_ + element * sizeof(T), sizeof(T), write);
    }

    uint64_t address_ = 0;
};

enum class CacheLine { SINGLE_CACHE_LINE, ENTIRE_DATA_CACHE };
enum class DcciDst { CACHELINE_ALL, CACHELINE_UB, CACHELINE_OUT };

template <class T, CacheLine Entire, DcciDst Destination> void DataCacheCleanAndInvalid(const GlobalTensor<T> &line) {
    static_assert(Entire == CacheLine::SINGLE_CACHE_LINE && Destination == DcciDst::CACHELINE_OUT);
    ascend_model::Device::current()->clean_line(ascend_model::this_core(), line.address());
}

template <HardEvent Event> void SetFlag(TEventID id) {
    ascend_model::this_core().set_event(ends_of(Event).from, ends_of(Event).to, static_cast<uint32_t>(id));
}

template <HardEvent Event> void WaitFlag(TEventID id) {
    ascend_model::this_core().wait_event(ends_of(Event).from, ends_of(Event).to, static_cast<uint32_t>(id));
}

template <pipe_t Which> void PipeBarrier() {
    ascend_model::Core &core = ascend_model::this_core();
    if constexpr (Which == PIPE_ALL)
        core.barrier_all();
    else
        core.barrier(static_cast<Pipe>(Which));
    ascend_model::Device &device = *ascend_model::Device::current();
    if constexpr (Which == PIPE_ALL)
        device.make_visible(core);
    else if constexpr (Which == PIPE_MTE3)
        core.effect(ascend_model::pipe_mte3, [&core, &device] { device.make_visible(core); });
}

// By default it begins when all pipes of a core have ended.
template <bool AivOnly = true> void SyncAll() {
    PipeBarrier<PIPE_ALL>();
    ascend_model::Device::current()->wait_for_all_cores();
}

inline int64_t GetBlockIdx() { return ascend_model::this_core().index(); }
inline int64_t GetBlockNum() { return ascend_model::Device::current()->cores(); }
// 50 cycles a microsecond. Every wait looks at the time, so this is where other cores get their turn.
int64_t GetSystemCycle();

class TPipe {
  public:
    TPipe() { ascend_model::this_core().pipe_object = this; }

    template <class Buffer> void InitBuffer(Buffer &buffer, uint32_t bytes) {
        buffer.tensor_ = {ascend_model::this_core().allocate_ub(bytes), padded(bytes)};
    }
    template <class Queue> void InitBuffer(Queue &queue, uint8_t number, uint32_t bytes) { queue.init(number, bytes); }
    template <HardEvent Event> TEventID AllocEventID() {
        return static_cast<TEventID>(ascend_model::this_core().allocate_event(ends_of(Event).from, ends_of(Event).to));
    }
    template <HardEvent Event> void ReleaseEventID(TEventID id) {
        ascend_model::this_core().release_event(ends_of(Event).from, ends_of(Event).to, static_cast<uint32_t>(id));
    }
    TEventID FetchEventID(HardEvent event) {
        return static_cast<TEventID>(ascend_model::this_core().free_event(ends_of(event).from, ends_of(event).to));
    }
};

inline TPipe *GetTPipePtr() { return static_cast<TPipe *>(ascend_model::this_core().pipe_object); }

template <TPosition Position> class TBuf {
  public:
    // Not const, as in CANN.
    template <class T> LocalTensor<T> Get() { return tensor_.template ReinterpretCast<T>(); }

  private:
    friend class TPipe;
    LocalTensor<uint8_t> tensor_;
};

constexpr Pipe producer_of(TPosition position) {
    return position == TPosition::VECIN ? ascend_model::pipe_mte2 : ascend_model::pipe_v;
}
constexpr Pipe consumer_of(TPosition position) {
    return position == TPosition::VECOUT ? ascend_model::pipe_mte3 : ascend_model::pipe_v;
}

// Buffers that go round between two pipes: AllocTensor, EnQue, DeQue, FreeTensor, in this order for every buffer.
template <TPosition Source, TPosition Destination, int32_t Depth> class TQueBind {
  public:
    template <class T> LocalTensor<T> AllocTensor() {
        for (uint32_t index = 0; index < number_; ++index) {
            Slot &slot = slots_[(next_ + index) % number_];
            if (slot.state != State::free)
                continue;
            next_ = (next_ + index + 1) % number_;
            slot.state = State::allocated;
            ascend_model::Core &core = ascend_model::this_core();
            if (slot.freed >= 0)
                take(core, consumer_of(Destination), producer_of(Source), slot.freed);
            return slot.tensor.template ReinterpretCast<T>();
        }
        ascend_model::violate("AllocTensor: all %u buffers of the queue are in use", number_);
    }
    template <class T> void EnQue(const LocalTensor<T> &tensor) {
        Slot &slot = find(tensor.offset(), State::allocated, "EnQue of a tensor that was not allocated");
        if (queued_ == Depth)
            ascend_model::violate("EnQue: the queue of depth %d is full", Depth);
        slot.state = State::queued;
        slot.order = counter_++;
        ++queued_;
        slot.filled = give(producer_of(Source), consumer_of(Destination));
    }
    template <class T> LocalTensor<T> DeQue() {
        Slot *oldest = nullptr;
        for (uint32_t index = 0; index < number_; ++index)
            if (slots_[index].state == State::queued && (oldest == nullptr || slots_[index].order < oldest->order))
                oldest = &slots_[index];
        if (oldest == nullptr)
            ascend_model::violate("DeQue of an empty queue");
        take(ascend_model::this_core(), producer_of(Source), consumer_of(Destination), oldest->filled);
        oldest->state = State::taken;
        --queued_;
        return oldest->tensor.template ReinterpretCast<T>();
    }
    template <class T> void FreeTensor(LocalTensor<T> &tensor) {
        Slot &slot = find(tensor.offset(), State::taken, "FreeTensor of a tensor that was not dequeued");
        slot.state = State::free;
        slot.freed = give(consumer_of(Destination), producer_of(Source));
    }
    ~TQueBind() noexcept(false) {
        if (std::uncaught_exceptions() > 0)
            return;
        for (uint32_t index = 0; index < number_; ++index) {
            Slot &slot = slots_[index];
            if (slot.state != State::free)
                ascend_model::violate("the kernel ends with a tensor of a queue in use");
            // What the pipe object does with the events of freed buffers when the kernel ends.
            if (slot.freed >= 0)
                take(ascend_model::this_core(), consumer_of(Destination), producer_of(Source), slot.freed);
        }
    }

  private:
    friend class TPipe;
    enum class State { free, allocated, queued, taken };
    struct Slot {
        LocalTensor<uint8_t> tensor;
        State state = State::free;
        uint32_t order = 0;
        int32_t filled = -1;
        int32_t freed = -1;
    };

    void init(uint32_t number, uint32_t bytes) {
        if (number == 0 || number > 4)
            ascend_model::violate("a queue of %u buffers", number);
        number_ = number;
        for (uint32_t index = 0; index < number; ++index)
            slots_[index].tensor = {ascend_model::this_core().allocate_ub(bytes), padded(bytes)};
    }
    Slot &find(uint32_t offset, State state, const char *problem) {
        for (uint32_t index = 0; index < number_; ++index)
            if (slots_[index].tensor.offset() == offset && slots_[index].state == state)
                return slots_[index];
        ascend_model::violate("%s", problem);
    }
    static int32_t give(Pipe from, Pipe to) {
        ascend_model::Core &core = ascend_model::this_core();
        const uint32_t id = core.allocate_event(from, to);
        core.set_event(from, to, id);
        return static_cast<int32_t>(id);
    }
    static void take(ascend_model::Core &core, Pipe from, Pipe to, int32_t &id) {
        core.wait_event(from, to, static_cast<uint32_t>(id));
        core.release_event(from, to, static_cast<uint32_t>(id));
        id = -1;
    }

    Slot slots_[4];
    uint32_t number_ = 0;
    uint32_t next_ = 0;
    uint32_t counter_ = 0;
    int32_t queued_ = 0;
};

template <TPosition Position, int32_t Depth>
using TQue = TQueBind<Position == TPosition::VECIN ? TPosition::VECIN : TPosition::VECCALC,
                      Position == TPosition::VECOUT ? TPosition::VECOUT : TPosition::VECCALC, Depth>;

} // namespace AscendC
