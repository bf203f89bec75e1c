#include "placement.h"

#include <algorithm>
#include <bit>

#include <unistd.h>

#include "checksum.h"
#include "row_kernels.h"
#include "segments.h"

namespace ascend_moe {
namespace {

// Payloads of more bytes than this are stored past the caches: a quarter of the last-level cache, where streaming began
// to win with 32 MB of it (Zen 3). At most 48 MiB, because a virtual machine is told the whole cache of a host that it
// shares with others: with 480 MB (Sapphire Rapids) both stores took equally long at 67 MB that lay in the cache, and
// streaming was faster where it did not.
uint64_t streaming_bytes() {
    constexpr long most = 48 << 20;
    static const long cache_bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return cache_bytes > 0 ? static_cast<uint64_t>(std::min(cache_bytes / 4, most)) : 12 << 20;
}

uint32_t destination_of(int64_t position) { return static_cast<uint32_t>(position >> 32); }
uint64_t row_of(int64_t position) { return static_cast<uint64_t>(position & 0xffffffff); }

// Fills call.positions in token order, so that every row's place is known before any is written.
void assign_places(const Session &session, const ExchangeDispatch &call, const Routing &ids,
                   std::vector<uint64_t> offsets) {
    const ExchangeLayout &layout = session.layout();
    const uint32_t local_experts = layout.experts / layout.ranks;
    for (uint64_t index = 0; index < uint64_t{call.tokens} * layout.topk; ++index) {
        const int64_t id = ids[index];
        if (id < 0) {
            call.positions[index] = -1;
            continue;
        }
        const auto expert = static_cast<uint32_t>(id);
        call.positions[index] = static_cast<int64_t>(uint64_t{expert / local_experts} << 32 | offsets[expert]++);
    }
}

// What goes with a placed row of `token`: the scale of its int8 values, its token, and its checksum.
void place_beside(const Session &session, const ExchangeDispatch &call, uint64_t token, const uint8_t *row,
                  float scale) {
    const ExchangeLayout &layout = session.layout();
    const int64_t *positions = call.positions + token * layout.topk;
    const uint32_t slot = call.slot;
    for (uint64_t k = 0; k < layout.topk; ++k) {
        if (positions[k] < 0)
            continue;
        const Window window = session.window(destination_of(positions[k]));
        const uint64_t place = row_of(positions[k]);
        // @protocol place-scale. And, alike, the row's token.
        if (layout.quantised)
            window.scale(slot, place) = scale;
        if (layout.expert_rows > 0)
            window.token(slot, place) = static_cast<uint32_t>(token);
        // @protocol place-check
        if (layout.verify)
            window.row_check(slot, place) = placed_checksum(session, row, scale, place);
    }
}

// Fetches the lines that place_beside will write: each holds what belongs to one row.
void fetch_beside(const Session &session, const ExchangeDispatch &call, uint64_t token) {
    const RowKernels &kernels = row_kernels();
    const uint64_t topk = session.layout().topk;
    for (uint64_t index = token * topk; index < (token + 1) * topk; ++index)
        if (const int64_t position = call.positions[index]; position >= 0)
            kernels.fetch_line(&session.window(destination_of(position)).scale(call.slot, row_of(position)));
}

// Where the rows of a token go, in k order.
class PlaceList {
  public:
    PlaceList(const Session &session, const ExchangeDispatch &call)
        : session_(session), call_(call), places_(session.layout().topk) {}

    Places of(uint64_t token) {
        const uint64_t topk = places_.size();
        uint64_t count = 0;
        for (uint64_t index = token * topk; index < (token + 1) * topk; ++index)
            if (const int64_t position = call_.positions[index]; position >= 0)
                places_[count++] = session_.window(destination_of(position)).row(call_.slot, row_of(position));
        return {places_.data(), count};
    }

  private:
    const Session &session_;
    const ExchangeDispatch &call_;
    std::vector<uint8_t *> places_;
};

// Writes the rows of tokens, one after the other. A row that travels as int8 is quantised while it is written, and the
// next one searched for its greatest magnitude, because writing waits for memory; not if it is streamed past the
// caches.
class RowWriter {
  public:
    RowWriter(const Session &session, const ExchangeDispatch &call)
        : layout_(session.layout()), row_bytes_(call.row_bytes > 0 ? call.row_bytes : layout_.row_bytes),
          streaming_(uint64_t{call.tokens} * layout_.topk * row_bytes_ > streaming_bytes()),
          quantised_(layout_.quantised ? layout_.hidden : 0) {}

    struct Written {
        const uint8_t *row; // as it travels
        float scale;
    };

    // `upcoming` and `next`: places and row of the next token; none if it is not routed.
    Written write(const uint8_t *row, Places places, Places upcoming, const uint8_t *next) {
        // @protocol place-row
        if (!layout_.quantised) {
            scatter(places, row, upcoming);
            return {row, 0};
        }
        const auto *values = reinterpret_cast<const uint8_t *>(quantised_.data());
        if (streaming_) {
            const float scale = kernels_.quantise[layout_.element](row, layout_.hidden, quantised_.data());
            scatter(places, values, upcoming);
            return {values, scale};
        }
        if (row != searched_)
            greatest_ = kernels_.greatest[layout_.element](row, layout_.hidden);
        searched_ = next;
        return {values, kernels_.scatter_quantised[layout_.element](places, row, layout_.hidden, greatest_,
                                                                    quantised_.data(), upcoming, next)};
    }

    void drain() const {
        // @protocol drain-rows. Streaming stores are not ordered by the release of push-arrive.
        if (streaming_)
            kernels_.drain();
    }

  private:
    void scatter(Places places, const uint8_t *row, Places upcoming) const {
        (streaming_ ? kernels_.scatter_streaming : kernels_.scatter)(places, row, row_bytes_, upcoming);
    }

    const RowKernels &kernels_ = row_kernels();
    const ExchangeLayout &layout_;
    const uint64_t row_bytes_;
    const bool streaming_;
    std::vector<int8_t> quantised_;
    const uint8_t *searched_ = nullptr; // the row that greatest_ belongs to
    uint32_t greatest_ = 0;
};

void place_segment(const Session &session, const ExchangeDispatch &call, uint32_t begin, uint32_t end) {
    const ExchangeLayout &layout = session.layout();
    const bool has_lines = layout.quantised || layout.expert_rows > 0;
    RowWriter writer(session, call);
    // Those of a token and of the next one.
    PlaceList lists[2] = {{session, call}, {session, call}};
    Places upcoming = begin < end ? lists[begin % 2].of(begin) : Places();
    for (uint64_t token = begin; token < end; ++token) {
        const Places places = upcoming;
        upcoming = token + 1 < end ? lists[(token + 1) % 2].of(token + 1) : Places();
        if (has_lines && token + 1 < end)
            fetch_beside(session, call, token + 1);
        if (places.empty())
            continue;
        const uint8_t *row = static_cast<const uint8_t *>(call.x) + token * call.x_stride;
        const uint8_t *next = upcoming.empty() ? nullptr : row + call.x_stride;
        const RowWriter::Written written = writer.write(row, places, upcoming, next);
        if (has_lines || layout.verify)
            place_beside(session, call, token, written.row, written.scale);
    }
    writer.drain();
}

} // namespace

uint64_t placed_checksum(const Session &session, const uint8_t *row, float scale, uint64_t place) {
    const uint64_t seed = place ^ uint64_t{std::bit_cast<uint32_t>(scale)} << 32;
    return row_checksum(row, session.layout().row_bytes, session.epoch(), seed);
}

void place_rows(Session &session, const ExchangeDispatch &call, const Routing &ids,
                const std::vector<uint64_t> &offsets) {
    assign_places(session, call, ids, offsets);
    run_segments(segment_bounds(session, call.positions, call.tokens),
                 [&](uint32_t begin, uint32_t end) { place_segment(session, call, begin, end); });
}

} // namespace ascend_moe
