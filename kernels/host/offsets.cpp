#include "offsets.h"

#include <numeric>

#include "units.h"

namespace ascend_moe {
namespace {

// Lays out the rows for the experts of one rank from `first_row` on. `count(local, source)` says how many of each
// source there are for an expert, `begin(local, source, row)` is told where they go, `counts`, unless null, receives
// their sum for each expert. Returns the rows in all.
template <class Count, class Begin>
uint64_t lay_out(const ExchangeLayout &layout, uint64_t first_row, int64_t *counts, Count count, Begin begin) {
    uint64_t row = first_row, total = 0;
    for (uint32_t local = 0; local < layout.experts / layout.ranks; ++local) {
        if (layout.expert_rows > 0)
            row = first_row + local * layout.expert_rows;
        const uint64_t expert_begin = row;
        for (uint32_t source = 0; source < layout.ranks; ++source) {
            begin(local, source, row);
            row += count(local, source);
        }
        total += row - expert_begin;
        if (counts != nullptr)
            counts[local] = static_cast<int64_t>(row - expert_begin);
    }
    return total;
}

// All ranks compute the same totals from the same matrix, so either all of them refuse or none does.
int derive_from_matrix(Session &session, ExchangeDispatch &call, Part part, std::vector<uint64_t> &offsets) {
    const ExchangeLayout &layout = session.layout();
    const uint32_t local_experts = layout.experts / layout.ranks;
    const uint32_t *const matrix = call.matrix;
    for (uint32_t destination = 0; destination < layout.ranks; ++destination) {
        const uint32_t first = destination * local_experts;
        const bool is_own = destination == session.rank();
        const uint64_t total = lay_out(
            layout, call.first_row, is_own ? call.counts : nullptr,
            [&](uint32_t local, uint32_t source) { return matrix[source * layout.experts + first + local]; },
            [&](uint32_t local, uint32_t source, uint64_t row) {
                if (source == session.rank())
                    offsets[first + local] = row;
            });
        // @protocol joint-fit
        if (total > part.capacity(layout))
            return session.fail(EXCHANGE_WINDOW_TOO_SMALL, destination, 0, static_cast<int64_t>(total));
        if (is_own)
            call.total = total;
    }
    return EXCHANGE_OK;
}

// Tells every source where its rows for this rank's experts begin, and how many rows there are in all.
void push_grants(Session &session, ExchangeDispatch &call) {
    const ExchangeLayout &layout = session.layout();
    const uint32_t local_experts = layout.counted;
    std::vector<uint32_t> begins(uint64_t{layout.ranks} * local_experts);
    call.total = lay_out(
        layout, call.first_row, call.counts,
        [&](uint32_t local, uint32_t source) { return call.matrix[source * local_experts + local]; },
        [&](uint32_t local, uint32_t source, uint64_t row) {
            begins[source * local_experts + local] = static_cast<uint32_t>(row);
        });
    const uint64_t word = sequence_word(session.epoch(), call.kind);
    for (uint32_t peer = 0; peer < layout.ranks; ++peer) {
        const uint32_t *of_peer = begins.data() + uint64_t{peer} * local_experts;
        // @protocol push-grant
        push_units(session.window(peer).granted(session.rank()), of_peer, local_experts, word);
        GrantUnit &grant = session.window(peer).grant(session.rank());
        grant.total = call.total;
        grant.sum = std::accumulate(of_peer, of_peer + local_experts, call.total);
        // release: the unit's payload is seen before its word.
        grant.word.store(word, std::memory_order_release);
    }
}

int wait_for_grants(Session &session, uint32_t kind) {
    const ExchangeLayout &layout = session.layout();
    const Window own = session.own();
    const uint64_t expected = sequence_word(session.epoch(), kind);
    // @protocol wait-grants. acquire: pairs with push-grant, unit by unit.
    return session.wait_for_all(EXCHANGE_REGION_GRANTS, [&](uint32_t owner) {
        const uint64_t seen = own.grant(owner).word.load(std::memory_order_acquire);
        return seen != expected ? sight_of(seen, expected)
                                : sight_of_units(own.granted(owner), layout.count_units, expected);
    });
}

// Whether rows from `begin` on are in that part of a window.
bool lies_within(const ExchangeLayout &layout, Part part, uint64_t begin, uint64_t rows) {
    const uint64_t first = part.first_row(layout);
    return rows == 0 || (begin >= first && begin + rows <= first + part.capacity(layout));
}

// Every rank sees the same totals, so either all of them refuse or none does.
int read_grants(Session &session, ExchangeDispatch &call, Part part, const std::vector<uint32_t> &counts,
                std::vector<uint64_t> &offsets) {
    const ExchangeLayout &layout = session.layout();
    const uint32_t local_experts = layout.counted;
    const Window own = session.own();
    const uint64_t most = uint64_t{layout.ranks} * layout.max_tokens * layout.topk;
    std::vector<uint32_t> begins(local_experts);
    uint32_t full = layout.ranks;
    for (uint32_t owner = 0; owner < layout.ranks; ++owner) {
        const uint64_t total = own.grant(owner).total, sum = own.grant(owner).sum;
        read_units(own.granted(owner), begins.data(), local_experts);
        if (total > most || std::accumulate(begins.begin(), begins.end(), total) != sum)
            return session.fail_corrupt(EXCHANGE_REGION_GRANTS, owner, total);
        call.totals[owner] = static_cast<int64_t>(total);
        // @protocol joint-fit
        if (total > part.capacity(layout)) {
            full = std::min(full, owner);
            continue;
        }
        for (uint32_t local = 0; local < local_experts; ++local) {
            const uint32_t expert = owner * local_experts + local;
            if (!lies_within(layout, part, begins[local], counts[expert]))
                return session.fail_corrupt(EXCHANGE_REGION_GRANTS, owner, begins[local]);
            offsets[expert] = begins[local];
        }
    }
    if (full < layout.ranks)
        return session.fail(EXCHANGE_WINDOW_TOO_SMALL, full, 0, call.totals[full]);
    return EXCHANGE_OK;
}

} // namespace

int derive_offsets(Session &session, ExchangeDispatch &call, Part part, const std::vector<uint32_t> &counts,
                   std::vector<uint64_t> &offsets) {
    call.first_row = part.first_row(session.layout());
    if (!session.layout().granting)
        return derive_from_matrix(session, call, part, offsets);
    push_grants(session, call);
    if (const int result = wait_for_grants(session, call.kind); result != EXCHANGE_OK)
        return result;
    return read_grants(session, call, part, counts, offsets);
}

} // namespace ascend_moe
