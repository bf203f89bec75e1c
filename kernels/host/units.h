// Numbers that travel six to a unit, each unit with the word that says of which exchange it is.
#pragma once

#include "session.h"

namespace ascend_moe {

inline void push_units(NumberUnit *unit, const uint32_t *numbers, uint32_t count, uint64_t word) {
    for (uint32_t first = 0; first < count; first += EXCHANGE_COUNTS_PER_UNIT, ++unit) {
        for (uint32_t i = 0; i < EXCHANGE_COUNTS_PER_UNIT; ++i)
            unit->numbers[i] = first + i < count ? numbers[first + i] : 0;
        // release: the numbers of a unit are seen before its word.
        unit->word.store(word, std::memory_order_release);
    }
}

// Where the first of so many units has not come, if any. acquire: pairs with push_units.
inline Sight sight_of_units(const NumberUnit *units, uint32_t count, uint64_t expected) {
    for (uint32_t unit = 0; unit < count; ++unit)
        if (const uint64_t seen = units[unit].word.load(std::memory_order_acquire); seen != expected)
            return sight_of(seen, expected);
    return {Seen::ready, expected};
}

inline void read_units(const NumberUnit *unit, uint32_t *numbers, uint32_t count) {
    for (uint32_t first = 0; first < count; first += EXCHANGE_COUNTS_PER_UNIT, ++unit)
        for (uint32_t i = 0; i < EXCHANGE_COUNTS_PER_UNIT && first + i < count; ++i)
            numbers[first + i] = unit->numbers[i];
}

} // namespace ascend_moe
