// What a kernel receives, by value as part of its launch, and what it leaves in global memory. No NPU has run these
// kernels.
//
// A captured launch replays with the same arguments for ever: epochs and slots are therefore not in here but in the
// window, where the kernels advance them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "exchange.h"

// For whoever prepares a launch with a host compiler.
#ifndef __aicore__
#define __aicore__
#endif

namespace ascend_kernels {

template <class T> __aicore__ inline T Least(T one, T other) { return one < other ? one : other; }
template <class T> __aicore__ inline T Most(T one, T other) { return one < other ? other : one; }

struct KernelArguments {
    ExchangeLayout layout;
    uint64_t windows;        // [ranks] addresses of the windows as this device sees them
    uint64_t workspace;      // of WorkspaceBytes(layout, cores)
    uint64_t ends;           // a line per core, zero before the first launch, by which it says that it has ended
    uint64_t fault;          // a line that keeps the first fault of launches nobody waits for; 0: somebody does
    uint64_t steps;          // where a launch of epoch 0 leaves its StepTimes; those of later epochs follow
    uint64_t timeout_cycles; // of each wait
    uint32_t rank;
    uint32_t reserved;
};

struct DispatchArguments {
    KernelArguments common;
    uint64_t x;         // [tokens] rows of hidden elements
    uint64_t x_stride;  // bytes from row to row
    uint64_t ids;       // [tokens, topk] int32 or int64; -1 = not routed
    uint64_t positions; // out [tokens, topk] int64: destination rank << 32 | row, or -1
    uint64_t counts;    // out [local experts] int64: rows of each in this rank's window
    uint64_t matrix;    // out [ranks, counted] uint32: counts of every source
    uint64_t totals;    // out [ranks] int64: rows in every rank's window; only if granting
    uint64_t segments;  // [cores + 1] uint64: where the units of each core begin and the last end; 0: equal parts
    uint32_t ids_bytes; // 4 or 8
    uint32_t tokens;
    uint32_t kind;      // ExchangeKind
    uint32_t part;      // ExchangePart
    uint32_t continues; // 1: stays in the slot of the dispatch before
    uint32_t row_unit;  // what cores divide, in elements: a multiple of 16 that divides hidden
};

struct CombineArguments {
    KernelArguments common;
    uint64_t positions; // [tokens, topk] int64 as dispatch left them
    uint64_t weights;   // [tokens, topk] float
    uint64_t out;       // [tokens] rows of hidden elements
    uint64_t out_stride;
    uint64_t segments; // [cores + 1] uint64: where the units of each core begin and the last end; 0: equal parts
    uint32_t tokens;
    uint32_t slot;
    uint32_t part;
    uint32_t only_meet; // 1: the rendezvous before a second combine, no sums
    uint32_t layer;     // for StepTimes
    uint32_t reserved;
};

// Shares of a kernel's work begin and end at multiples of elements that divide rows, near 512 bytes: copies of less, or
// across lines of as many, cost bandwidth.
constexpr uint32_t least_unit = 16;
__aicore__ inline uint32_t UnitOf(uint32_t hidden, uint32_t element_bytes) {
    constexpr uint32_t enough_bytes = 512;
    uint32_t unit = least_unit;
    while (hidden % (2 * unit) == 0 && 2 * unit * element_bytes <= enough_bytes)
        unit *= 2;
    return unit;
}
// GetSystemCycle counts 50 a microsecond on A2 and A3 (asc-devkit, GetSystemCycle(ISASI).md).
constexpr uint64_t cycle_ns = 20;

// What the cores divide in combine, in elements.
__aicore__ inline uint32_t SumUnit(const ExchangeLayout &layout) {
    return UnitOf(layout.hidden, static_cast<uint32_t>(layout.out_row_bytes / layout.hidden));
}

// What a kernel holds in the unified buffer at a time: ids and positions of so many (token, k) pairs, whole tokens;
// bytes of a row that is placed as it is; elements of a row that is quantised; elements that are summed.
__aicore__ inline uint32_t PairsInPiece(uint32_t topk) { return (1024 > topk ? 1024 / topk : 1) * topk; }
constexpr uint32_t tile_bytes = 16 * 1024;
__aicore__ inline uint32_t QuantisedTile(uint32_t element_bytes) { return element_bytes == 4 ? 4096 : 8192; }
constexpr uint32_t sum_tile = 4096;
// Parts of results that are on their way at a time.
constexpr uint32_t sum_loads = 4;
// Pairs of all tokens, and of a core's share, that are compared as vectors instead of counted in histograms: no more,
// so that the work stays small; where the two take as long was not measured.
constexpr uint32_t compared_pairs = 1280;
constexpr uint32_t compared_own = 64;
// Bytes that a sum of them needs: one float for each 256 bytes, in whole blocks.
constexpr uint32_t compared_work =
    compared_pairs / 64 * sizeof(float) / EXCHANGE_UNIT_BYTES * EXCHANGE_UNIT_BYTES + EXCHANGE_UNIT_BYTES;
constexpr uint32_t loaded_pairs = 512;

// Records that are looked at together: as many as lie in so many bytes, and one at least; granting all, for places are
// taken of all.
constexpr uint32_t records_bytes = 16 * 1024;
__aicore__ inline uint32_t RecordBytes(const ExchangeLayout &layout) {
    return (1 + layout.count_units) * EXCHANGE_UNIT_BYTES;
}
__aicore__ inline uint32_t RecordsAtOnce(const ExchangeLayout &layout) {
    return layout.granting != 0 ? layout.ranks : Least(layout.ranks, Most(1u, records_bytes / RecordBytes(layout)));
}
// Into so many they are folded: what takes less of the unified buffer takes more instructions.
constexpr uint32_t folded_bytes = 4 * 1024;
__aicore__ inline uint32_t FoldedAtOnce(const ExchangeLayout &layout) {
    return Least((RecordsAtOnce(layout) + 1) / 2, Most(1u, folded_bytes / RecordBytes(layout)));
}

// Ranks [begin, end), which a core serves alone.
struct Served {
    uint32_t begin, end;

    __aicore__ inline uint32_t Number() const { return end - begin; }
    // The `i`-th of them, where every rank begins with another.
    __aicore__ inline uint32_t Rotated(uint32_t rank, uint32_t i) const { return begin + (rank + i) % Number(); }
};
__aicore__ inline Served ServedOf(uint32_t core, uint32_t cores, uint32_t ranks) {
    return {core * ranks / cores, (core + 1) * ranks / cores};
}
__aicore__ inline uint32_t MostServed(const ExchangeLayout &layout, uint32_t cores) {
    return layout.granting != 0 ? (layout.ranks + cores - 1) / cores : 1;
}
// Of what a core pushes of the counts, in whose place it then unpacks them.
__aicore__ inline uint32_t PushedBytes(const ExchangeLayout &layout, uint32_t cores) {
    const uint32_t units = Most(layout.count_units, (layout.ranks + cores - 1) / cores);
    return Most(units * EXCHANGE_UNIT_BYTES,
                layout.granting != 0 ? MostServed(layout, cores) * RecordBytes(layout) : 0);
}

// How a kernel, or a core's part of one, ended: an ExchangeFault, and what it found out. A line of its own each.
struct Verdict {
    uint32_t result; // ExchangeResult
    uint32_t culprit;
    uint32_t step;
    uint32_t cause;
    uint64_t epoch;
    int64_t detail;
    uint64_t total;
    uint32_t slot;
    uint32_t region; // ExchangeRegion
    uint32_t reserved[4];
};
static_assert(sizeof(Verdict) == EXCHANGE_LINE_BYTES, "a verdict fills a line");

// When the scalar unit of core 0 began the steps of a launch, by GetSystemCycle, if the fourth word of the state asks
// for it. What other pipes had still to do then is done within later ones.
struct StepTimes {
    uint64_t epoch;
    uint64_t began[6];      // the last of them the end; what is behind it is 0
    uint8_t steps[8];       // ExchangeStep of each; none: the end
    uint32_t waited[4];     // cycles for which the first of them were held up by other ranks
    uint32_t waited_for[4]; // the last rank that did so, counted from 1; 0: nobody
    uint32_t kind;          // ExchangeKind; 0: of a combine
    uint32_t placed;        // rows that this rank placed
    uint32_t received;      // rows that came to it
    uint32_t layer;         // of the model, counted from 1; 0: not said
    uint64_t reserved;
    uint64_t seal; // SealOf; another one: they were copied while a launch stored them
};
constexpr uint32_t step_stamps = 6;
constexpr uint32_t step_waits = 4;
static_assert(sizeof(StepTimes) == 2 * EXCHANGE_LINE_BYTES, "the times of a launch fill two lines");

// Of all that is before the seal; of nothing 0.
__aicore__ inline uint64_t SealOf(const StepTimes &times) {
    uint64_t seal = 0;
    for (uint32_t offset = 0; offset < offsetof(StepTimes, seal); offset += sizeof seal) {
        uint64_t word;
        __builtin_memcpy(&word, reinterpret_cast<const char *>(&times) + offset, sizeof word);
        seal = (seal ^ word) * 0xff51afd7ed558ccd;
    }
    return seal;
}

// A ring of them: for each of so many epochs those of the dispatch or announcement, and those of the combine. More than
// a step of any model has layers: the host reads them once per step.
constexpr uint32_t step_epochs = 256;
constexpr uint64_t step_bytes = uint64_t{2} * step_epochs * sizeof(StepTimes);
__aicore__ inline uint64_t StepsOffset(uint64_t epoch) { return epoch % step_epochs * 2 * sizeof(StepTimes); }

// The workspace: the kernel's verdict, one verdict per core and stage, one histogram per core.
constexpr uint32_t verdict_stages = 2;

__aicore__ inline uint64_t VerdictOffset(uint32_t stage, uint32_t core, uint32_t cores) {
    return (1 + uint64_t(stage) * cores + core) * EXCHANGE_LINE_BYTES;
}

__aicore__ inline uint64_t HistogramBytes(const ExchangeLayout &layout) {
    const uint64_t bytes = uint64_t(layout.experts) * sizeof(int32_t);
    return (bytes + EXCHANGE_LINE_BYTES - 1) / EXCHANGE_LINE_BYTES * EXCHANGE_LINE_BYTES;
}

__aicore__ inline uint64_t HistogramOffset(const ExchangeLayout &layout, uint32_t core, uint32_t cores) {
    return VerdictOffset(verdict_stages, 0, cores) + core * HistogramBytes(layout);
}

__aicore__ inline uint64_t WorkspaceBytes(const ExchangeLayout &layout, uint32_t cores) {
    return HistogramOffset(layout, cores, cores);
}

} // namespace ascend_kernels
