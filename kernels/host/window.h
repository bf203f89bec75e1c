// Typed access to the regions of a window, and the words that ranks publish in them.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>

#include "exchange.h"
#include "window_words.h"

namespace ascend_moe {

static_assert(sizeof(std::atomic<uint64_t>) == 8 && std::atomic<uint64_t>::is_always_lock_free,
              "words in shared memory must be plain 8-byte atomics");

using Word = std::atomic<uint64_t>;

// A sequence word: the epoch in bits 63..16, a tag in bits 15..0.
constexpr uint64_t sequence_word(uint64_t epoch, uint64_t tag) { return epoch << 16 | tag; }
constexpr uint64_t epoch_of(uint64_t word) { return word >> 16; }
constexpr uint32_t tag_of(uint64_t word) { return static_cast<uint32_t>(word & 0xffff); }

struct alignas(EXCHANGE_UNIT_BYTES) HeaderUnit {
    Word word;
    uint32_t tokens;
    uint32_t error;       // ExchangeInputError
    int64_t detail;       // of the error; without one the sum of the counts, of a plan 0
    uint32_t block_bytes; // of the mailbox; of plans and refusals, else 0
    uint32_t block_check; // block_checksum of them
};

// Counts, or rows at which those of a source begin.
struct alignas(EXCHANGE_UNIT_BYTES) NumberUnit {
    Word word;
    uint32_t numbers[EXCHANGE_COUNTS_PER_UNIT];
};

// What a rank answers to counts: whether the rows for it fit, and, in units of numbers, where those of a source begin.
struct alignas(EXCHANGE_UNIT_BYTES) GrantUnit {
    Word word;
    uint64_t total; // rows in the window of the rank that grants
    uint64_t sum;   // of that and of the rows at which those for each expert begin
    uint64_t reserved;
};

static_assert(sizeof(HeaderUnit) == EXCHANGE_UNIT_BYTES && sizeof(NumberUnit) == EXCHANGE_UNIT_BYTES &&
              sizeof(GrantUnit) == EXCHANGE_UNIT_BYTES);

// What only the owner of a window reads and writes; here so that a replayed launch finds it.
struct alignas(EXCHANGE_LINE_BYTES) ExchangeState {
    uint64_t epoch;      // exchanges begun
    uint64_t dispatches; // dispatches that got past the counts; the next one uses slot dispatches % slots
    uint64_t seal = window_words::state_seal(epoch, dispatches);

    bool is_sealed() const { return seal == window_words::state_seal(epoch, dispatches); }
};

struct alignas(EXCHANGE_LINE_BYTES) PartState {
    uint64_t epoch;      // of the dispatch that holds the part
    uint64_t rendezvous; // done words pushed for that epoch
    uint64_t seal = window_words::state_seal(epoch, rendezvous);

    bool is_sealed() const { return seal == window_words::state_seal(epoch, rendezvous); }
};

// A status word: result in bits 63..56, culprit in 55..40, step in 39..32, the epoch's low half in 31..0.
struct Status {
    uint32_t result, culprit, step, epoch;

    uint64_t packed() const {
        return uint64_t{result} << 56 | uint64_t{culprit & 0xffff} << 40 | uint64_t{step & 0xff} << 32 | epoch;
    }
    static Status unpack(uint64_t word) {
        return {static_cast<uint32_t>(word >> 56), static_cast<uint32_t>(word >> 40 & 0xffff),
                static_cast<uint32_t>(word >> 32 & 0xff), static_cast<uint32_t>(word)};
    }
};

// Whether a rank can have written that; 0 is nothing yet.
inline bool status_is_possible(uint64_t word, uint32_t ranks) {
    const Status status = Status::unpack(word);
    return window_words::status_is_possible(status.result, status.culprit, status.step, ranks);
}

// A status word, and of a corruption what was found, which is there before the word.
struct alignas(EXCHANGE_LINE_BYTES) StatusLine {
    Word word;
    Word value;
    Word region; // ExchangeRegion
};
static_assert(sizeof(StatusLine) == EXCHANGE_LINE_BYTES);

// A slot, or half of one.
struct Part {
    uint32_t slot;
    uint32_t part; // ExchangePart

    uint32_t words() const { return 2 * slot + (part == EXCHANGE_SECOND_HALF); }
    uint64_t first_row(const ExchangeLayout &layout) const {
        return part == EXCHANGE_SECOND_HALF ? layout.capacity / 2 : 0;
    }
    uint64_t capacity(const ExchangeLayout &layout) const {
        return part == EXCHANGE_WHOLE ? layout.capacity : layout.capacity / 2;
    }
};

class Window {
  public:
    Window(const ExchangeLayout &layout, void *base) : layout_(layout), base_(static_cast<uint8_t *>(base)) {}

    ExchangeState &state() const { return *at<ExchangeState>(layout_.state); }
    PartState &part(Part part) const {
        return *at<PartState>(layout_.state + (1 + part.words()) * EXCHANGE_LINE_BYTES);
    }
    Word &status(uint32_t source) const { return status_line(source).word; }
    StatusLine &status_line(uint32_t source) const {
        return *at<StatusLine>(layout_.status + source * EXCHANGE_LINE_BYTES);
    }
    HeaderUnit &header(uint64_t epoch, uint32_t source) const { return *at<HeaderUnit>(record(epoch, source)); }
    NumberUnit *counts(uint64_t epoch, uint32_t source) const {
        return at<NumberUnit>(record(epoch, source) + EXCHANGE_UNIT_BYTES);
    }
    // Of one exchange at a time: nobody grants the next before it has heard of everyone who has read this one.
    GrantUnit &grant(uint32_t owner) const { return *at<GrantUnit>(layout_.grants + owner * record_bytes()); }
    NumberUnit *granted(uint32_t owner) const {
        return at<NumberUnit>(layout_.grants + owner * record_bytes() + EXCHANGE_UNIT_BYTES);
    }
    uint8_t *mailbox(uint64_t epoch, uint32_t source) const {
        // @protocol mailbox-parity
        return at<uint8_t>(layout_.mailboxes + ((epoch & 1) * layout_.ranks + source) * layout_.mailbox_bytes);
    }
    Word &arrive(Part part, uint32_t source) const {
        return line(layout_.arrive, part.words() * layout_.ranks + source);
    }
    Word &done(Part part, uint32_t source) const { return line(layout_.done, part.words() * layout_.ranks + source); }
    uint8_t *row(uint32_t slot, uint64_t row) const {
        return at<uint8_t>(layout_.rows + (slot * layout_.capacity + row) * layout_.row_bytes);
    }
    float &scale(uint32_t slot, uint64_t row) const {
        return *at<float>(layout_.scales + (slot * layout_.capacity + row) * EXCHANGE_LINE_BYTES);
    }
    uint32_t &token(uint32_t slot, uint64_t row) const {
        return *at<uint32_t>(layout_.scales + (slot * layout_.capacity + row) * EXCHANGE_LINE_BYTES + sizeof(float));
    }
    const uint8_t *out(uint32_t slot, uint64_t row) const {
        return at<uint8_t>(layout_.out + (slot * layout_.capacity + row) * layout_.out_row_bytes);
    }

    uint64_t &row_check(uint32_t slot, uint64_t row) const { return check(layout_.row_checks, slot, row); }
    uint64_t &out_check(uint32_t slot, uint64_t row) const { return check(layout_.out_checks, slot, row); }

  private:
    uint64_t &check(uint64_t region, uint32_t slot, uint64_t row) const {
        return *at<uint64_t>(region + (slot * layout_.capacity + row) * sizeof(uint64_t));
    }
    template <class T> T *at(uint64_t offset) const { return reinterpret_cast<T *>(base_ + offset); }
    Word &line(uint64_t region, uint64_t index) const { return *at<Word>(region + index * EXCHANGE_LINE_BYTES); }
    uint64_t record(uint64_t epoch, uint32_t source) const {
        // @protocol record-parity
        return layout_.records + ((epoch & 1) * layout_.ranks + source) * record_bytes();
    }
    uint64_t record_bytes() const { return (1 + layout_.count_units) * EXCHANGE_UNIT_BYTES; }

    const ExchangeLayout &layout_;
    uint8_t *base_;
};

} // namespace ascend_moe
