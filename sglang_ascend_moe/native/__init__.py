"""The kernels as Python sees them. May import windows.layout and errors. Begin with session.py.

`session` opens the window of a rank and calls dispatch and combine, `device_session` does so on an Ascend device.
`calls` holds the arguments of a call, `abi` the C structs of kernels/include, `codes` the numbers that both sides
share, `faults` what a kernel found as an exception.
"""
