// Packing, restoring and reducing for the paths that the benchmark compares the exchange with.
#include "bench_rows.h"

#include <cstring>
#include <vector>

#include "bench_shape.h"
#include "elements.h"
#include "row_kernels.h"

namespace ascend_moe {
namespace {

void copy_block(const BenchShape &shape, uint8_t *to, const uint8_t *from, uint64_t bytes) {
    if (shape.streaming)
        row_kernels().scatter_streaming({&to, 1}, from, bytes, {});
    else
        memcpy(to, from, bytes);
}

// Calls move(rows before this run in its source's block, rows before it in expert order, rows) for each run of rows
// that one source sent to one local expert.
template <class Move> void for_each_run(const BenchShape &shape, const uint32_t *matrix, Move move) {
    const uint32_t local_experts = shape.experts / shape.ranks;
    const uint32_t first = shape.rank * local_experts;
    std::vector<uint64_t> in_block(shape.ranks);
    uint64_t in_order = 0;
    for (uint32_t local = 0; local < local_experts; ++local)
        for (uint32_t source = 0; source < shape.ranks; ++source) {
            const uint64_t rows = matrix[source * shape.experts + first + local];
            if (rows != 0)
                move(source, in_block[source], in_order, rows);
            in_block[source] += rows;
            in_order += rows;
        }
}

// Where each row goes in the block of its destination; blocks are in (expert, token, k) order.
void assign_blocks(const BenchShape &shape, const BenchTokens &tokens) {
    const uint32_t local_experts = shape.experts / shape.ranks;
    std::vector<uint64_t> next(shape.experts);
    for (uint32_t expert = 0; expert < shape.experts; ++expert)
        next[expert] = expert % local_experts == 0 ? 0 : next[expert - 1] + tokens.counts[expert - 1];
    for (uint64_t index = 0; index < uint64_t{tokens.tokens} * shape.topk; ++index) {
        const int64_t expert = tokens.ids[index];
        const auto number = static_cast<uint64_t>(expert);
        tokens.positions[index] = expert < 0 ? -1 : static_cast<int64_t>(number / local_experts << 32 | next[number]++);
    }
}

template <class Element> void dequantise(const int8_t *values, float scale, uint32_t hidden, uint8_t *out) {
    auto *elements = reinterpret_cast<Element *>(out);
    for (uint32_t i = 0; i < hidden; ++i)
        elements[i] = Element::from_float(static_cast<float>(values[i]) * scale);
}

} // namespace
} // namespace ascend_moe

using namespace ascend_moe;

void bench_count(const BenchShape *shape, const BenchTokens *tokens) {
    memset(tokens->counts, 0, shape->experts * sizeof(uint32_t));
    for (uint64_t index = 0; index < uint64_t{tokens->tokens} * shape->topk; ++index)
        if (tokens->ids[index] >= 0)
            ++tokens->counts[tokens->ids[index]];
}

void bench_pack(const BenchShape *shape, const BenchTokens *tokens, uint8_t *const *blocks) {
    const RowKernels &kernels = row_kernels();
    const auto scatter = shape->streaming ? kernels.scatter_streaming : kernels.scatter;
    const uint64_t row_bytes = packed_bytes(*shape);
    const uint64_t x_bytes = result_bytes(*shape);
    assign_blocks(*shape, *tokens);
    std::vector<uint8_t *> lists[2] = {std::vector<uint8_t *>(shape->topk), std::vector<uint8_t *>(shape->topk)};
    const auto places_of = [&](uint64_t token) -> Places {
        std::vector<uint8_t *> &list = lists[token % 2];
        uint64_t count = 0;
        for (uint64_t index = token * shape->topk; token < tokens->tokens && index < (token + 1) * shape->topk; ++index)
            if (const int64_t position = tokens->positions[index]; position >= 0)
                list[count++] = blocks[position >> 32] + static_cast<uint64_t>(position & 0xffffffff) * row_bytes;
        return {list.data(), count};
    };
    std::vector<uint8_t> quantised(row_bytes + BENCH_LINE_BYTES);
    uint8_t *packed = align_line(quantised.data());
    auto *values = reinterpret_cast<int8_t *>(packed);
    const uint8_t *searched = nullptr; // the row that `greatest` belongs to
    uint32_t greatest = 0;
    Places upcoming = places_of(0);
    for (uint64_t token = 0; token < tokens->tokens; ++token) {
        const Places places = upcoming;
        upcoming = places_of(token + 1);
        const uint8_t *row = static_cast<const uint8_t *>(tokens->x) + token * x_bytes;
        if (places.empty())
            continue;
        if (!shape->quantised) {
            scatter(places, row, row_bytes, upcoming);
            continue;
        }
        // As in an exchange.
        if (shape->streaming) {
            const float scale = kernels.quantise[shape->element](row, shape->hidden, values);
            memcpy(packed + shape->hidden, &scale, sizeof scale);
            scatter(places, packed, row_bytes, upcoming);
            continue;
        }
        if (row != searched)
            greatest = kernels.greatest[shape->element](row, shape->hidden);
        searched = upcoming.empty() ? nullptr : row + x_bytes;
        const float scale =
            kernels.scatter_quantised[shape->element](places, row, shape->hidden, greatest, values, upcoming, searched);
        for (uint8_t *place : places)
            memcpy(place + shape->hidden, &scale, sizeof scale);
    }
    if (shape->streaming)
        kernels.drain();
}

void bench_quantise(const BenchShape *shape, const BenchTokens *tokens, int8_t *values, float *scales) {
    const auto quantise = row_kernels().quantise[shape->element];
    for (uint64_t token = 0; token < tokens->tokens; ++token)
        scales[token] = quantise(static_cast<const uint8_t *>(tokens->x) + token * result_bytes(*shape), shape->hidden,
                                 values + token * shape->hidden);
}

void bench_restore(const BenchShape *shape, const uint32_t *matrix, const uint8_t *const *blocks, uint8_t *rows,
                   float *scales) {
    const uint64_t row_bytes = packed_bytes(*shape);
    for_each_run(*shape, matrix, [&](uint32_t source, uint64_t in_block, uint64_t in_order, uint64_t count) {
        const uint8_t *from = blocks[source] + in_block * row_bytes;
        if (!shape->quantised)
            return copy_block(*shape, rows + in_order * row_bytes, from, count * row_bytes);
        for (uint64_t i = 0; i < count; ++i, from += row_bytes) {
            memcpy(rows + (in_order + i) * shape->hidden, from, shape->hidden);
            memcpy(&scales[in_order + i], from + shape->hidden, sizeof(float));
        }
    });
    if (shape->streaming)
        row_kernels().drain();
}

void bench_return(const BenchShape *shape, const uint32_t *matrix, const uint8_t *out, uint8_t *const *blocks) {
    const uint64_t row_bytes = result_bytes(*shape);
    for_each_run(*shape, matrix, [&](uint32_t source, uint64_t in_block, uint64_t in_order, uint64_t count) {
        copy_block(*shape, blocks[source] + in_block * row_bytes, out + in_order * row_bytes, count * row_bytes);
    });
    if (shape->streaming)
        row_kernels().drain();
}

void bench_reduce(const BenchShape *shape, const BenchTokens *tokens, const uint8_t *const *blocks, void *result) {
    const auto reduce = row_kernels().reduce[shape->element];
    const uint64_t row_bytes = result_bytes(*shape);
    std::vector<Term> lists[2] = {std::vector<Term>(shape->topk), std::vector<Term>(shape->topk)};
    const auto terms_of = [&](uint64_t token) -> Terms {
        std::vector<Term> &list = lists[token % 2];
        uint64_t count = 0;
        for (uint64_t index = token * shape->topk; token < tokens->tokens && index < (token + 1) * shape->topk; ++index)
            if (const int64_t position = tokens->positions[index]; position >= 0) {
                const auto place = static_cast<uint64_t>(position & 0xffffffff);
                list[count++] = {blocks[position >> 32] + place * row_bytes, tokens->weights[index]};
            }
        return {list.data(), count};
    };
    Terms terms = terms_of(0);
    for (uint64_t token = 0; token < tokens->tokens; ++token) {
        const Terms upcoming = terms_of(token + 1);
        reduce(terms, shape->hidden, static_cast<uint8_t *>(result) + token * row_bytes, upcoming);
        terms = upcoming;
    }
}

void bench_experts(const BenchShape *shape, const uint8_t *rows, const float *scales, uint64_t scale_stride,
                   uint64_t total, uint8_t *out) {
    const uint64_t out_bytes = result_bytes(*shape);
    if (!shape->quantised) {
        memcpy(out, rows, total * out_bytes);
        return;
    }
    for (uint64_t row = 0; row < total; ++row) {
        const auto *values = reinterpret_cast<const int8_t *>(rows) + row * shape->hidden;
        const float scale = scales[row * scale_stride];
        switch (shape->element) {
        case EXCHANGE_BF16:
            dequantise<Bf16>(values, scale, shape->hidden, out + row * out_bytes);
            break;
        case EXCHANGE_FP16:
            dequantise<Fp16>(values, scale, shape->hidden, out + row * out_bytes);
            break;
        default:
            dequantise<Fp32>(values, scale, shape->hidden, out + row * out_bytes);
            break;
        }
    }
}
