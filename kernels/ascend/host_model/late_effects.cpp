#include "late_effects.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace ascend_model {
namespace {

constexpr uint32_t chances = 4;
// How far a pipe falls behind; also bounds how deep what is needed nests.
constexpr size_t most_waiting = 64;

} // namespace

void LateEffects::reset(uint64_t seed) {
    seed_ = seed;
    for (std::vector<Effect> &waiting : waiting_)
        waiting.clear();
    for (uint32_t &haste : haste_)
        haste = seed == 0 ? 0 : draw(chances + 1);
}

uint32_t LateEffects::draw(uint32_t bound) {
    seed_ = seed_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>((seed_ >> 33) % bound);
}

void LateEffects::put(Pipe pipe, uint32_t number, const Clock &needs, std::function<void()> effect) {
    waiting_[pipe].push_back({number, needs, std::move(effect)});
    if (waiting_[pipe].size() > most_waiting)
        make_one(pipe, 0);
    for (uint32_t other = 0; other < pipe_count; ++other)
        if (!waiting_[other].empty() && draw(chances) < haste_[other])
            make_one(other, draw(static_cast<uint32_t>(waiting_[other].size())));
}

void LateEffects::make_one(uint32_t pipe, size_t index) {
    const auto place = waiting_[pipe].begin() + static_cast<std::ptrdiff_t>(index);
    const Effect effect = std::move(*place);
    waiting_[pipe].erase(place);
    make(effect.needs);
    effect.make();
}

void LateEffects::make(const Clock &known) {
    for (uint32_t pipe = 0; pipe < pipe_count; ++pipe)
        for (;;) {
            std::vector<uint32_t> due;
            for (uint32_t index = 0; index < waiting_[pipe].size(); ++index)
                if (waiting_[pipe][index].number <= known[pipe])
                    due.push_back(index);
            if (due.empty())
                break;
            make_one(pipe, due[draw(static_cast<uint32_t>(due.size()))]);
        }
}

void LateEffects::make_all() {
    Clock all;
    all.fill(std::numeric_limits<uint32_t>::max());
    make(all);
}

} // namespace ascend_model
