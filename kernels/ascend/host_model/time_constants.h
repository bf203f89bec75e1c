// What the model charges for instructions: the one table, from which docs/ascend-kernels.md is written.
//
// TIME_CONSTANT(name, value, unit, least, most, source): between `least` and `most` the value may be on a device; where
// no public source exists it is assumed. "pto-isa" is hw-native-sys/pto-isa at 3186c381, include/pto/costmodel (fitted
// to Atlas A2 and A3 by its authors); "asc-devkit" the guide of asc-devkit 9.0.0.
#pragma once

#include <cstdint>

// clang-format off
#define TIME_CONSTANTS(TIME_CONSTANT) \
    TIME_CONSTANT(clock, 1.85, "GHz", 1.65, 1.85, "pto-isa, arch_config.hpp") \
    TIME_CONSTANT(issue, 10, "ns per instruction of another pipe", 5, 30, "assumed") \
    TIME_CONSTANT(scalar_buffer, 10, "ns per scalar access of the unified buffer", 5, 30, "assumed") \
    TIME_CONSTANT(scalar_cached, 5, "ns per scalar access of a cached line", 2, 10, "assumed") \
    TIME_CONSTANT(event, 5, "ns per SetFlag or WaitFlag", 1, 20, "pto-isa: 1 cycle; assumed more") \
    TIME_CONSTANT(vector_head, 12, "cycles per vector instruction on an idle pipe", 8, 14, "pto-isa, cce_costmodel") \
    TIME_CONSTANT(vector_unary, 1, "cycles per 256 bytes, one operand", 1, 1, "pto-isa, cce_costmodel") \
    TIME_CONSTANT(vector_binary, 2, "cycles per 256 bytes, two operands or a cast", 2, 2, "pto-isa, cce_costmodel") \
    TIME_CONSTANT(vector_sum, 7, "cycles per 256 bytes, ReduceSum", 7, 7, "pto-isa, cce_costmodel (vcadd)") \
    TIME_CONSTANT(vector_gather, 14, "cycles per 256 bytes, GatherMask", 14, 14, "pto-isa, cce_costmodel (vreducev2)") \
    TIME_CONSTANT(vector_tail, 16, "cycles until a result is there", 12, 22, "pto-isa, cce_costmodel") \
    TIME_CONSTANT(vector_odd, 16, "cycles more if not of whole 256 bytes", 12, 18, "pto-isa, cce_costmodel_core.hpp") \
    TIME_CONSTANT(copy_start, 20, "ns per copy", 10, 60, "assumed") \
    TIME_CONSTANT(load_bandwidth, 108, "GB/s of a core's loads", 100, 110, "pto-isa, arch_config.hpp") \
    TIME_CONSTANT(store_bandwidth, 202, "GB/s of a core's stores", 30, 202, "pto-isa, arch_config.hpp (fitted: 30)") \
    TIME_CONSTANT(granule, 512, "bytes that a copy touches at least, aligned", 32, 512, "asc-devkit, 512-byte alignment") \
    TIME_CONSTANT(load_latency, 250, "ns until loaded bytes are there, own memory", 200, 500, "assumed") \
    TIME_CONSTANT(store_latency, 200, "ns until a store is visible, own memory", 100, 400, "assumed") \
    TIME_CONSTANT(remote_load_latency, 450, "ns, a peer's memory", 450, 2000, "pto-isa, tget_bandwidth: 4 KiB and a local store in 725") \
    TIME_CONSTANT(remote_store_latency, 450, "ns, a peer's memory", 400, 2000, "assumed, as a load") \
    TIME_CONSTANT(memory_bandwidth, 1600, "GB/s of a rank's memory, all cores and peers", 1200, 1800, "CloudMatrix384, arXiv 2506.12708") \
    TIME_CONSTANT(link_bandwidth, 160, "GB/s of a rank's link each way", 100, 196, "arXiv 2506.12708: 196 at most; assumed 80 %") \
    TIME_CONSTANT(core_barrier, 1000, "ns per SyncAll after the last core", 500, 3000, "assumed") \
    TIME_CONSTANT(kernel_start, 3000, "ns from the launch to the first instruction", 2000, 6000, "assumed")
// clang-format on

namespace ascend_model {

struct TimeConstants {
#define TIME_CONSTANT(name, value, unit, least, most, source) double name = value;
    TIME_CONSTANTS(TIME_CONSTANT)
#undef TIME_CONSTANT
};

// Those in use.
extern TimeConstants times;

struct TimeConstantInfo {
    const char *name, *unit, *source;
    double least, most;
    double TimeConstants::*value;
};
constexpr TimeConstantInfo time_constants[] = {
#define TIME_CONSTANT(name, value, unit, least, most, source) {#name, unit, source, least, most, &TimeConstants::name},
    TIME_CONSTANTS(TIME_CONSTANT)
#undef TIME_CONSTANT
};

} // namespace ascend_model
