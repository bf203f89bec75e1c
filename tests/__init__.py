"""The tests lie in the folders of what they test.

`tests/launch/bench` tests `launch/bench`, `tests/serving/host` tests `sglang_ascend_moe/serving/host`, and so on; what
starts whole engines and servers is in `tests/serving` itself, a whole deployment in `tests/launch/disagg`. Besides:

- `ascend`: the Ascend kernels and their library; `model`: the protocol, in a model checker
- `npu`: an emulated NPU, and tests of it
- `sanitizers`, `security`, `soak`: kernels under sanitizers, hostile bytes and peers, growth over many calls
- `versions`: what other packages have of what we call; `packaging`: source files, lock file, wheel
- `npu`: an emulated NPU, on which SGLang's NPU code runs
- `readme`, `examples`: what the pages and the examples tell people to type

No two modules have the same name.
"""
