// Small things that every kernel here needs: order between pipes, and a core's share of the work.
#pragma once

#include "kernel_operator.h"

namespace ascend_kernels {

using namespace AscendC;

// Everything issued so far on the first pipe of `Event` is done before anything issued later on the second.
template <HardEvent Event> __aicore__ inline void Order() {
    const TEventID id = GetTPipePtr()->FetchEventID(Event);
    SetFlag<Event>(id);
    WaitFlag<Event>(id);
}

template <class T> __aicore__ inline GlobalTensor<T> Global(uint64_t address) {
    GlobalTensor<T> tensor;
    tensor.SetGlobalBuffer(reinterpret_cast<__gm__ T *>(address));
    return tensor;
}

// Objects as the 8-byte words that they travel in.
template <class T> __aicore__ inline void SetWord(T &object, uint32_t index, uint64_t word) {
    __builtin_memcpy(reinterpret_cast<char *>(&object) + index * sizeof word, &word, sizeof word);
}
template <class T> __aicore__ inline uint64_t GetWord(const T &object, uint32_t index) {
    uint64_t word;
    __builtin_memcpy(&word, reinterpret_cast<const char *>(&object) + index * sizeof word, sizeof word);
    return word;
}

struct Share {
    uint64_t begin, end;
};

// The part of `total` things that a core takes: as `segments` says, or equal parts that differ by one at most. The
// segments do not change while a kernel runs: the scalar cache may hold them.
__aicore__ inline Share ShareOf(uint64_t core, uint64_t total, uint64_t segments) {
    const auto cores = static_cast<uint64_t>(GetBlockNum());
    if (segments != 0)
        return {Global<uint64_t>(segments).GetValue(core), Global<uint64_t>(segments).GetValue(core + 1)};
    return {total * core / cores, total * (core + 1) / cores};
}

template <class T> __aicore__ inline void Load(const LocalTensor<T> &to, const GlobalTensor<T> &from, uint32_t count) {
    DataCopyPad(to, from, DataCopyExtParams{1, static_cast<uint32_t>(count * sizeof(T)), 0, 0, 0},
                DataCopyPadExtParams<T>{false, 0, 0, {}});
}

template <class T> __aicore__ inline void Store(const GlobalTensor<T> &to, const LocalTensor<T> &from, uint32_t count) {
    DataCopyPad(to, from, DataCopyExtParams{1, static_cast<uint32_t>(count * sizeof(T)), 0, 0, 0});
}

} // namespace ascend_kernels
