"""An emulated NPU: SGLang's NPU code on a host, over a device of torch that is none.

Test equipment. `device` is the device itself, `operators` are those of torch_npu and sgl-kernel-npu in the CPU's
arithmetic; `emulated.install` makes both the `npu` of a process.
"""
