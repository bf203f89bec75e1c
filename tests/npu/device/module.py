"""`torch.npu` of the emulated NPU: what SGLang uses of torch_npu's."""

from __future__ import annotations

import atexit
import faulthandler
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from tests.npu.device import graphs, streams
from tests.npu.device.library import native

NAME = "emulated NPU"
_STATE = struct.Struct("=QQ")
_settings = SimpleNamespace(devices=0)


class DeviceProperties(NamedTuple):
    """Of a die: its name, its memory in bytes, and how many cores it says it has."""

    name: str
    total_memory: int
    cube_core_num: int
    vector_core_num: int
    uuid: str


def is_available() -> bool:
    return _settings.devices > 0


def is_initialized() -> bool:
    return True


def init() -> None:
    """Nothing: the die is opened when it is first used."""


def device_count() -> int:
    return _settings.devices


def current_device() -> int:
    return torch.accelerator.current_device_index()


def set_device(device: Any) -> None:
    torch.accelerator.set_device_index(streams.device_index(device))


@contextmanager
def device(device: Any) -> Iterator[None]:
    """Inside, this is the current device."""
    before = current_device()
    set_device(device)
    try:
        yield
    finally:
        set_device(before)


def synchronize(device: Any = None) -> None:
    torch.accelerator.synchronize(streams.device_index(device))


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Bytes that are free, and bytes in all."""
    with _on(device):
        usage = native().memory()
    return usage["total"] - usage["reserved"], usage["total"]


def memory_allocated(device: Any = None) -> int:
    with _on(device):
        return native().memory()["allocated"]


def max_memory_allocated(device: Any = None) -> int:
    with _on(device):
        return native().memory()["peak"]


def memory_reserved(device: Any = None) -> int:
    with _on(device):
        return native().memory()["reserved"]


def reset_peak_memory_stats(device: Any = None) -> None:
    with _on(device):
        native().reset_peak()


def memory_stats(device: Any = None) -> dict[str, int]:
    with _on(device):
        usage = native().memory()
    return {
        "allocated_bytes.all.current": usage["allocated"],
        "allocated_bytes.all.peak": usage["peak"],
        "reserved_bytes.all.current": usage["reserved"],
    }


def empty_cache() -> None:
    """Nothing: what is freed is free at once."""


def get_device_name(device: Any = None) -> str:  # noqa: ARG001
    return NAME


def get_device_properties(device: Any = None) -> DeviceProperties:
    index = streams.device_index(device)
    return DeviceProperties(NAME, mem_get_info(device)[1], 24, 48, f"emulated-{index}")


def get_device_capability(device: Any = None) -> None:  # noqa: ARG001 - as torch_npu, which returns None
    return None


def manual_seed(seed: int) -> None:
    native().set_default_generator(seed % 2**64, 0)


def manual_seed_all(seed: int) -> None:
    manual_seed(seed)


def initial_seed() -> int:
    return native().default_generator()[0]


def get_rng_state(device: Any = None) -> torch.Tensor:  # noqa: ARG001
    """The seed and the number of calls since, as a generator's own state has them."""
    return torch.frombuffer(bytearray(_STATE.pack(*native().default_generator())), dtype=torch.uint8)


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:  # noqa: ARG001
    native().set_default_generator(*_STATE.unpack(bytes(state.tolist())))


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16]


def set_compile_mode(jit_compile: bool = False) -> None:
    """Nothing: operators are not compiled."""


def set_stream_limit(stream: Any, cube_num: int = -1, vector_num: int = -1) -> None:
    """Nothing: streams have no cores of their own."""


def _is_in_bad_fork() -> bool:
    return native().opened_before_fork()


@contextmanager
def _on(index: Any) -> Iterator[None]:
    with device(index):
        yield


SURFACE = (
    current_device, device, device_count, empty_cache, get_amp_supported_dtype, get_device_capability, get_device_name,
    get_device_properties, get_rng_state, init, initial_seed, is_available, is_initialized, manual_seed,
    manual_seed_all, max_memory_allocated, mem_get_info, memory_allocated, memory_reserved, memory_stats,
    reset_peak_memory_stats, set_compile_mode, set_device, set_rng_state, set_stream_limit, synchronize,
    _is_in_bad_fork,
    streams.Event, streams.ExternalEvent, streams.Stream, streams.current_stream, streams.default_stream,
    streams.StreamContext, streams.set_stream, streams.stream,
    graphs.NPUGraph, graphs.graph, graphs.graph_pool_handle, graphs.is_current_stream_capturing,
)  # fmt: skip


def _restore(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage | None:
    """What another process has pickled of its die lies on that of this one, which can open no other, as it could on
    a machine with NPUs."""
    return storage.to(device=torch.device("npu", current_device())) if location.startswith("npu") else None


def install(devices: int, memory_bytes: int, seed: int) -> ModuleType:
    """Registers the device with torch, once in a process; returns what is now `torch.npu`."""
    import torch._meta_registrations

    native().install(devices, memory_bytes)
    native().set_seed(seed)
    _settings.devices = devices
    # With it the report of a direct access says what Python was doing.
    traceback_signal = signal.SIGRTMAX - 1
    faulthandler.register(traceback_signal, all_threads=False, chain=False)
    native().set_traceback_signal(traceback_signal)
    torch.utils.rename_privateuse1_backend("npu")
    made = ModuleType("torch.npu")
    for item in SURFACE:
        setattr(made, item.__name__, item)
    made.config = SimpleNamespace(allow_internal_format=False)
    torch._register_device_module("npu", made)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.serialization.register_package(5, lambda _storage: None, _restore)
    # Work that is still waiting may need Python.
    atexit.register(native().drain)
    return made
