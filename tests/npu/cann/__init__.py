"""The exchange over the emulated NPU: our libraries for Ascend devices, unchanged, over stand-ins of what they call.

`runtime.cpp` is CANN's runtime, `torch_npu.cpp` and `torch_queue.cpp` what torch's own streams have in torch_npu,
`memfabric.cpp` memory that the devices of several processes share. `build_cann` builds them and our libraries,
`install_cann` makes them those of a process.
"""
