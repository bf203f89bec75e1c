// Host code: what the kernels take of the unified buffer, and what they cannot serve.
#pragma once

#include <cstdint>
#include <cstdio>

#include "../arguments.h"

namespace ascend_kernels {

// Of 192 KB CANN keeps 8 KB and 256 bytes (asc-devkit, architecture 2201, without --cce-disable-asc-reserved-ubuf).
constexpr uint64_t unified_buffer_bytes = 184 * 1024 - 256;

// Buffers begin at multiples of 32 bytes.
inline uint64_t InBlocks(uint64_t bytes) {
    return (bytes + EXCHANGE_UNIT_BYTES - 1) / EXCHANGE_UNIT_BYTES * EXCHANGE_UNIT_BYTES;
}

// Of control.h.
inline uint64_t ControlBufferBytes(const ExchangeLayout &layout, uint32_t cores) {
    return sizeof(StepTimes) + (uint64_t{2} * layout.ranks + cores) * EXCHANGE_UNIT_BYTES;
}

// Of quantise.h or rows.h.
inline uint64_t RowBufferBytes(const ExchangeLayout &layout) {
    if (!layout.quantised)
        return 2 * InBlocks(Least(layout.row_bytes, uint64_t{tile_bytes}));
    const uint64_t element_bytes = layout.out_row_bytes / layout.hidden;
    const uint64_t tile = Least(layout.hidden, QuantisedTile(static_cast<uint32_t>(element_bytes)));
    const uint64_t loads = InBlocks(tile * element_bytes);
    const uint64_t floats = 2 * InBlocks(tile * sizeof(float)), stores = 2 * (InBlocks(tile) + EXCHANGE_UNIT_BYTES);
    return loads + floats + stores;
}

// Of own_pairs.h.
inline uint64_t PairBufferBytes(const ExchangeLayout &layout) {
    const uint64_t compared = uint64_t{2} * compared_pairs * sizeof(float) + compared_work;
    const uint64_t results =
        InBlocks(compared_own * sizeof(float)) + InBlocks((EXCHANGE_COUNTS_PER_UNIT + 1) * sizeof(float));
    return compared + results + 4 * InBlocks(uint64_t{layout.experts} * sizeof(int32_t));
}

// Of records.h, counts.h and grants.h.
inline uint64_t CountBufferBytes(const ExchangeLayout &layout, uint32_t cores) {
    const uint64_t record = RecordBytes(layout);
    const uint64_t records = (RecordsAtOnce(layout) + 2 * uint64_t{FoldedAtOnce(layout)}) * record;
    const uint64_t sums = (1 + uint64_t{MostServed(layout, cores)}) * record;
    const uint64_t starts = InBlocks((uint64_t{layout.ranks} + 1) * sizeof(uint32_t));
    const uint64_t totals = InBlocks(uint64_t{layout.experts / layout.ranks} * sizeof(int64_t));
    return records + PushedBytes(layout, cores) + EXCHANGE_UNIT_BYTES + sums + starts + totals +
           (layout.granting ? record : 0);
}

// Of dispatch.cpp, with routing.h.
inline uint64_t DispatchBufferBytes(const ExchangeLayout &layout, uint32_t cores) {
    const uint64_t pairs = 2 * InBlocks(uint64_t{PairsInPiece(layout.topk)} * sizeof(int64_t));
    return ControlBufferBytes(layout, cores) + PairBufferBytes(layout) + CountBufferBytes(layout, cores) + pairs +
           RowBufferBytes(layout);
}

// Of combine.cpp.
inline uint64_t CombineBufferBytes(const ExchangeLayout &layout, uint32_t cores) {
    const uint64_t tile = Least(layout.hidden, sum_tile), pairs = PairsInPiece(layout.topk);
    const uint64_t terms = InBlocks(pairs * sizeof(int64_t)) + InBlocks(pairs * sizeof(float));
    const uint64_t rows = (sum_loads + 2) * InBlocks(tile * (layout.out_row_bytes / layout.hidden));
    return ControlBufferBytes(layout, cores) + terms + rows + 2 * InBlocks(tile * sizeof(float));
}

// Why the kernels on `cores` cores cannot serve windows of this layout, in a text of at most `bytes`; null: they can.
inline const char *RefuseLayout(const ExchangeLayout &layout, uint32_t cores, char *text, size_t bytes) {
    if (layout.verify)
        return "the Ascend kernels make no row checksums; create the exchange with verify=False";
    if (layout.expert_rows > 0)
        return "the Ascend kernels place whole rows without gaps; use layout='compact'";
    const uint64_t dispatch = DispatchBufferBytes(layout, cores), combine = CombineBufferBytes(layout, cores);
    const uint64_t needed = dispatch > combine ? dispatch : combine;
    if (needed <= unified_buffer_bytes)
        return nullptr;
    snprintf(
        text, bytes,
        "num_experts=%u, ranks=%u, hidden=%u and topk=%u take %llu bytes of an Ascend core's unified buffer, which "
        "has %llu; use fewer experts or ranks%s%s",
        layout.experts, layout.ranks, layout.hidden, layout.topk, static_cast<unsigned long long>(needed),
        static_cast<unsigned long long>(unified_buffer_bytes), layout.quantised ? ", or quant=None" : "",
        layout.granting ? ", or counts='matrix'" : "");
    return text;
}

} // namespace ascend_kernels
