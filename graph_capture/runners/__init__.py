"""Decode graphs in SGLang's runners: the only files of this package that know SGLang.

`host_runner` and `host_decode` serve a machine without accelerator, with the attention of `attention`; `npu_runner`
puts SGLang's own NPU graphs behind the guard; `eager` serves what no graph can hold.
"""
