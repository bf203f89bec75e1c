"""The torch device `npu` of the emulated NPU: memory of its own, streams that run later, graphs.

The C++ files, from the bottom: `counters`; `streams` and `events`, which need nothing of torch; `memory` and `faults`;
`graphs`; `device` and `generators`, what torch asks of a device; `c_interface`, what other stand-ins call
(`emulated_npu.h`); `operators` and `fallback`, its operators; `collectives`, a backend of torch.distributed; `module`,
what Python calls.
"""
