"""Windows in pooled memory through memfabric-hybrid, SGLang's own library for memory between Ascend NPUs.

The C API of the wheel (`include/smem/host/smem_shm.h`) is called instead of its Python module: that one knows neither
the distance between the windows, nor can it return whether a peer is reachable. No NPU has run this.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.windows.device import Place, Pool, free_place, refuse_bases, rounded

PACKAGE = "memfabric_hybrid"
_MTE = 1
"""`SMEMS_DATA_OP_MTE`: cores load from and store to the memory of peers; the only kind that memfabric offers today."""

_TIMEOUT_S = 300
"""Of each step that all ranks take together: they may still be loading a model."""

_u16, _u32, _u64, _pointer = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p


class ShmConfig(ctypes.Structure):
    """`smem_shm_config_t`."""

    _fields_ = [
        ("init_timeout_s", _u32), ("create_timeout_s", _u32), ("control_timeout_s", _u32),
        ("starts_store", ctypes.c_bool), ("flags", _u32),
    ]  # fmt: skip


FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "smem_init": (ctypes.c_int32, (_u32,)),
    "smem_get_last_err_msg": (ctypes.c_char_p, ()),
    "smem_shm_config_init": (ctypes.c_int32, (_pointer,)),
    "smem_shm_init": (ctypes.c_int32, (ctypes.c_char_p, _u32, _u32, _u16, _pointer)),
    "smem_shm_uninit": (None, (_u32,)),
    "smem_shm_create": (_pointer, (_u32, _u32, _u32, _u64, ctypes.c_int, _u32, _pointer)),
    "smem_shm_get_symmetric_size": (_u64, (_pointer,)),
    "smem_shm_topology_can_reach": (ctypes.c_int32, (_pointer, _u32, _pointer)),
    "smem_shm_destroy": (ctypes.c_int32, (_pointer, _u32)),
}
"""Every function that is called: its result and its parameters."""

# What this process shares with its peers: (rank, ranks) once it is connected, and the ids of windows that are open.
_connected: tuple[int, int] | None = None
_open_ids: set[int] = set()


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def load() -> Any:
    """The library of the wheel, its functions declared. Raises `Unsupported` if it cannot be loaded."""
    try:
        package: Any = importlib.import_module(PACKAGE)
        library = ctypes.CDLL(str(Path(package.get_lib_path()) / "libmf_smem.so"))
        declare(library)
    except (ImportError, OSError, AttributeError) as error:
        raise Unsupported(
            f"memfabric-hybrid cannot be used ({error}). Install sglang-ascend-moe[npu], with CANN's set_env.sh"
            " sourced, or choose --ascend-moe-windows aclshmem"
        ) from error
    return library


def declare(library: Any) -> None:
    """Give the functions of a library their C types. Raises AttributeError for one that it has not."""
    for name, (result, parameters) in FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, list(parameters)


def meeting(host: str) -> bytes:
    """On rank 0: the URL at which all ranks meet, a port of `host` that is free now; an address of this machine."""
    return f"tcp://{free_place(host)}".encode()


def open_pool(place: Place, library: Any = None) -> Pool:
    """The windows of all ranks; every rank calls it. Raises `Unsupported` with memfabric's words."""
    library = load() if library is None else library
    _connect(library, place)
    # Every rank opens its windows in the same order, and so finds the same id.
    number = next(candidate for candidate in range(len(_open_ids) + 1) if candidate not in _open_ids)
    base = _pointer()
    handle = library.smem_shm_create(
        number, place.ranks, place.rank, rounded(place.window_bytes), _MTE, 0, ctypes.byref(base)
    )
    if not handle or not base.value:
        raise Unsupported(
            f"memfabric refuses a window of {rounded(place.window_bytes)} bytes: {_words(library)}. Lower"
            " --mem-fraction-static or --ascend-moe-window-bytes, or choose --ascend-moe-windows aclshmem"
        )
    _open_ids.add(number)

    def release() -> None:
        global _connected
        library.smem_shm_destroy(handle, 0)
        _open_ids.discard(number)
        if not _open_ids:
            library.smem_shm_uninit(0)
            _connected = None

    try:
        _refuse_unreachable(library, handle, place)
        distance = library.smem_shm_get_symmetric_size(handle)
        bases = tuple(base.value + distance * rank for rank in range(place.ranks))
        refuse_bases(bases, "memfabric")
    except Unsupported:
        release()
        raise
    return Pool(bases, release)


def _connect(library: Any, place: Place) -> None:
    global _connected
    if _connected == (place.rank, place.ranks):
        return
    if _connected is not None:
        raise Unsupported(
            f"this process already has windows as rank {_connected[0]} of {_connected[1]}, and memfabric knows one set"
            f" of ranks per process; close that exchange before it becomes rank {place.rank} of {place.ranks}"
        )
    config = ShmConfig()
    started = library.smem_init(0) or library.smem_shm_config_init(ctypes.byref(config))
    config.init_timeout_s = config.create_timeout_s = config.control_timeout_s = _TIMEOUT_S
    config.starts_store = True
    if started or library.smem_shm_init(place.meeting, place.ranks, place.rank, place.device, ctypes.byref(config)):
        raise Unsupported(
            f"memfabric cannot connect {place.ranks} ranks over {place.meeting.decode()} on NPU {place.device}:"
            f" {_words(library)}. Check the driver (npu-smi info) and the versions in docs/ascend.md"
        )
    _connected = (place.rank, place.ranks)


def _refuse_unreachable(library: Any, handle: Any, place: Place) -> None:
    for peer in range(place.ranks):
        reach = _u32(0)
        failed = library.smem_shm_topology_can_reach(handle, peer, ctypes.byref(reach))
        if peer != place.rank and (failed or not reach.value & _MTE):
            raise Unsupported(
                f"the NPU of {place.named(peer)} cannot be reached from that of {place.named(place.rank)} by its cores"
                f" (memfabric says {reach.value:#x}): all ranks need NPUs of one HCCS domain. Choose them with"
                " ASCEND_RT_VISIBLE_DEVICES, or lower --tp-size"
            )


def _words(library: Any) -> str:
    return (library.smem_get_last_err_msg() or b"without a reason").decode(errors="replace").strip()
