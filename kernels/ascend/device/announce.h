// Arguments of the kernels that move no rows: exchanges of blocks, refused exchanges, and what a rank tells all others.
#pragma once

#include "../arguments.h"

namespace ascend_kernels {

struct AnnounceArguments {
    KernelArguments common;
    uint64_t block; // block_bytes for the mailbox of this rank in every window
    int64_t detail;
    uint32_t block_bytes;
    uint32_t tokens;
    uint32_t kind;  // ExchangeKind
    uint32_t error; // ExchangeInputError
    uint32_t block_check;
    uint32_t reserved;
};

struct TellArguments {
    KernelArguments common;
    uint64_t word; // for the status line of this rank in every window
    uint64_t value;
    uint64_t region;
};

struct StampArguments {
    KernelArguments common;
    uint64_t to; // a unit for the time
};

} // namespace ascend_kernels
