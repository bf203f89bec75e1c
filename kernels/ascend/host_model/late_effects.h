// What instructions still have to do, in the delayed mode of the model.
//
// There a pipe does its work later than it is told, in an order that only events, barriers and the end of the kernel
// restrict, and that a seed draws. So what a kernel does not wait for is missing or wrong in its results; without the
// mode it is reported by the accounting of core.h alone.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

#include "pipes.h"

namespace ascend_model {

class LateEffects {
  public:
    // Seed 0: everything takes effect at once.
    void reset(uint64_t seed);
    bool are_late() const { return seed_ != 0; }

    // What instruction `number` of `pipe` does, which may rely on `needs` being done.
    void put(Pipe pipe, uint32_t number, const Clock &needs, std::function<void()> effect);
    // Does what is in `known`, and whatever that needs.
    void make(const Clock &known);
    void make_all();

  private:
    struct Effect {
        uint32_t number;
        Clock needs;
        std::function<void()> make;
    };

    void make_one(uint32_t pipe, size_t index);
    uint32_t draw(uint32_t bound);

    uint64_t seed_ = 0;
    std::array<uint32_t, pipe_count> haste_ = {}; // of 4 chances, how many to do something at each instruction
    std::array<std::vector<Effect>, pipe_count> waiting_;
};

} // namespace ascend_model
