"""The kernels as Python sees them. May import windows.layout and errors. Begin with session.py.

`session` opens the window of a rank and calls dispatch and combine, `device_session` does so on an Ascend device.
`library` says which kernels those are, `codes` has the numbers that both sides share, `faults` makes an exception of
what a kernel found. The way from Python into C is kernels/python.
"""
