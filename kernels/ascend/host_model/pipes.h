// The pipes of an AIV core.
#pragma once

#include <array>
#include <cstdint>

namespace ascend_model {

enum Pipe : uint32_t { pipe_s, pipe_v, pipe_mte2, pipe_mte3, pipe_count };

// Of each pipe, up to which instruction.
using Clock = std::array<uint32_t, pipe_count>;

} // namespace ascend_model
