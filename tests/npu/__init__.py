"""An emulated NPU: SGLang's NPU code on a host, over a device of torch that is none.

Test equipment. `device` is the device itself; `emulated.install` makes it the `npu` of a process.
"""
