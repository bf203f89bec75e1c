"""The library for Ascend devices over stand-ins: CANN's runtime on the CPU, the kernels on the host model.

It is compiled against the real headers of CANN that a wheel of torch_npu carries. No NPU has run it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sglang_ascend_moe.exchange import host_backend
from sglang_ascend_moe.native.device_session import DeviceSession
from sglang_ascend_moe.native.library import use_library
from tests.ascend.conftest import Objects
from tests.ascend.host_model import KERNELS, ModelViolated, build_objects, link
from tests.exchange.pool import Program, Rank

STAND_IN = Path(__file__).parent / "cann_stand_in"
DEVICE = KERNELS / "ascend" / "device"
SOURCES = [
    *(DEVICE / f"{name}.cpp" for name in ("announce", "device_session", "exchange_library", "watcher")),
    *sorted(STAND_IN.glob("*.cpp")),
]
SHARED = ("core", "core_clock", "delay", "device", "instructions", "late_effects", "machine", "routing", "segments")
"""What is part of the model's library as well."""

pointer, u32 = ctypes.c_void_p, ctypes.c_uint32


class Launch(ctypes.Structure):
    _fields_ = [("kernel", u32), ("cores", u32), ("arguments", ctypes.c_uint64 * 48)]


class Cann:
    """The stand-in inside a loaded library."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)
        for name in ("calls", "violation"):
            getattr(self.library, f"cann_stand_in_{name}").restype = ctypes.c_char_p
        self.library.cann_stand_in_allocated.restype = ctypes.c_uint64
        for name in ("aclmdlRIExecuteAsync", "aclmdlRIDestroy", "aclrtSynchronizeStream", "aclrtDestroyStream"):
            getattr(self.library, name).argtypes = [pointer, pointer][: 2 if name.endswith("Async") else 1]
        self.library.aclrtMemcpyAsync.argtypes = [pointer, ctypes.c_size_t, pointer, ctypes.c_size_t, u32, pointer]
        self.library.aclmdlRICaptureBegin.argtypes = [pointer, ctypes.c_int]
        self.library.aclmdlRICaptureEnd.argtypes = [pointer, pointer]
        self.library.exchange_device_use_stream.argtypes = [pointer, pointer, u32]
        self.library.exchange_device_use_stream.restype = None
        self.library.exchange_device_capturing.argtypes = [pointer]
        self.library.exchange_device_ready_dispatch.argtypes = [pointer, pointer, ctypes.c_uint64, pointer]
        self.library.exchange_device_ready_combine.argtypes = [pointer, pointer, pointer]
        self.library.exchange_device_launch.argtypes = [pointer, pointer]
        self.library.exchange_device_fetch.argtypes = [pointer, pointer, u32]

    def calls(self) -> list[str]:
        """What was called since the last look."""
        return self.library.cann_stand_in_calls().decode().split()

    def refuse(self, call: str, code: int) -> None:
        """The next `call` returns `code`."""
        self.library.cann_stand_in_refuse(call.encode(), code)

    def allocated(self) -> int:
        return self.library.cann_stand_in_allocated()

    def violation(self) -> str:
        return self.library.cann_stand_in_violation().decode()

    def new_stream(self) -> int:
        stream = pointer()
        assert self.library.aclrtCreateStream(ctypes.byref(stream)) == 0
        return stream.value

    @contextmanager
    def capture(self, stream: int) -> Iterator[Graph]:
        """What is put on `stream` within goes into the graph."""
        graph = Graph(self, stream)
        self.library.aclmdlRICaptureBegin(stream, 0)
        yield graph
        self.library.aclmdlRICaptureEnd(stream, ctypes.byref(graph.handle))


class Graph:
    def __init__(self, cann: Cann, stream: int) -> None:
        self._cann, self._stream = cann, stream
        self.handle = pointer()

    def replay(self) -> None:
        self._cann.library.aclmdlRIExecuteAsync(self.handle, self._stream)


class OneStream:
    """What the torch library does, for tensors of the CPU and one stream of the stand-in."""

    def __init__(self, cann: Cann) -> None:
        self.cann = cann
        self.stream = cann.new_stream()

    def use_stream(self, like: torch.Tensor, session: int) -> bool:
        assert like.dtype == torch.int32
        capturing = bool(self.cann.library.exchange_device_capturing(self.stream))
        self.cann.library.exchange_device_use_stream(session, self.stream, 0)
        return capturing

    def copy(self, to: torch.Tensor, source: torch.Tensor) -> None:
        """Puts the copy of a tensor on the stream."""
        size = to.numel() * to.element_size()
        assert self.cann.library.aclrtMemcpyAsync(to.data_ptr(), size, source.data_ptr(), size, 3, self.stream) == 0

    def launch(self, tensors: Sequence[torch.Tensor], kernel: int, session: int, call: int, most_rows: int) -> None:
        assert len(tensors) == 2
        ready, library = Launch(), self.cann.library
        library.exchange_device_use_stream(session, self.stream, 0)
        if kernel:
            assert library.exchange_device_ready_combine(session, call, ctypes.byref(ready)) == 0
        else:
            assert library.exchange_device_ready_dispatch(session, call, most_rows, ctypes.byref(ready)) == 0
        assert library.exchange_device_launch(ctypes.byref(ready), self.stream) == 0

    def fetch_verdicts(self, like: torch.Tensor, session: int, place: int) -> None:
        assert like.dtype == torch.int32
        assert self.cann.library.exchange_device_fetch(session, self.stream, place) == 0


def build(folder: Path, headers: Path, compiled: Objects) -> str:
    """Compiles and links the library; `headers`: the folder `torch_npu/include`; `compiled`: the kernels, the model."""
    include = [DEVICE, STAND_IN, headers / "third_party" / "acl" / "inc"]
    shared = [path for path in compiled.others if path.stem in SHARED]
    objects = [*build_objects(SOURCES, folder, include), *compiled.kernels, *shared]
    return str(link(objects, folder / "libascend_device.so"))


@contextmanager
def on_device_library(path: str, cores: int) -> Iterator[OneStream]:
    """Exchanges opened inside are those of a device with so many cores. Raises `ModelViolated`."""
    cann = Cann(path)
    cann.library.cann_stand_in_use_cores(cores)
    streams = OneStream(cann)

    def open_session(layout, rank, addresses, ends, _workers, *, first_epoch, nodes, **_host):
        device = torch.device("cpu")
        return DeviceSession(layout, rank, addresses, ends, device, streams, first_epoch=first_epoch, nodes=nodes)

    use_library(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_backend, "NativeSession", open_session)
        try:
            yield streams
        finally:
            use_library(None)
            if text := cann.violation():
                raise ModelViolated(text)


def on_device(rank: Rank, path: str, cores: int, program: Program, *arguments: object) -> object:
    """A program for ranks whose exchanges are those of devices."""
    with on_device_library(path, cores):
        return program(rank, *arguments)


def beside_hosts(rank: Rank, path: str, cores: int, program: Program, *arguments: object) -> object:
    """The same on odd ranks, with the host kernels on even ones."""
    return program(rank, *arguments) if rank.rank % 2 == 0 else on_device(rank, path, cores, program, *arguments)
