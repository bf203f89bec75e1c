"""Windows in the symmetric heap of ACLSHMEM, the Python module `shmem` (github.com/hicann/shmem).

The heap gets its size when the library is started, which is once for a process: so there is one window. No NPU has run
this.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from typing import Any

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.windows.device import ALIGNMENT, HUGE_PAGE, Place, Pool, free_place, refuse_bases, rounded

PACKAGE = "shmem"
PLACE_VARIABLE = "SHMEM_UID_SESSION_ID"
"""Of the library: where rank 0 listens, `HOST:PORT`. It takes an interface in another one, if this is not set."""
_open = False


def is_installed() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def load() -> Any:
    """The module. Raises `Unsupported` if it cannot be loaded."""
    try:
        module = importlib.import_module(PACKAGE)
    except (ImportError, OSError) as error:
        raise Unsupported(
            f"ACLSHMEM cannot be used ({error}). Install the Python package of github.com/hicann/shmem, with CANN's"
            " set_env.sh sourced, or choose --ascend-moe-windows memfabric"
        ) from error
    # Without its native part it only logs a warning when it is imported.
    if not hasattr(module, "aclshmem_init_using_unique_id"):
        raise Unsupported(
            "ACLSHMEM cannot be used: the native part of the Python package shmem is missing. shmem-config --diagnose"
            " says why; or choose --ascend-moe-windows memfabric"
        )
    return module


def meeting(host: str) -> bytes:
    """On rank 0: the id by which all ranks find each other, at a port of `host` that is free now, an address of this
    machine, unless the library's own variables say where. Raises `Unsupported`."""
    module = load()
    _without_tls(module)
    with contextlib.suppress(RuntimeError):
        return bytes(module.aclshmem_get_unique_id())
    # Without one of its variables it makes no id.
    os.environ[PLACE_VARIABLE] = free_place(host)
    try:
        return bytes(module.aclshmem_get_unique_id())
    except RuntimeError as error:
        raise Unsupported(
            f"ACLSHMEM cannot make the id by which ranks meet ({error}). Choose --ascend-moe-windows memfabric"
        ) from error


def open_pool(place: Place, module: Any = None) -> Pool:
    """The windows of all ranks; every rank calls it. Raises `Unsupported`."""
    global _open
    module = load() if module is None else module
    if _open:
        raise Unsupported(
            "the heap of ACLSHMEM holds one window per process, and this one has MoE layers of several shapes; choose"
            " --ascend-moe-windows memfabric"
        )
    _without_tls(module)
    # A page beside the window, for what the heap itself needs.
    heap = rounded(place.window_bytes) + HUGE_PAGE
    if failed := module.aclshmem_init_using_unique_id(place.rank, place.ranks, heap, place.meeting):
        raise Unsupported(
            f"ACLSHMEM cannot start with a heap of {heap} bytes on NPU {place.device} (error {failed}). Lower"
            " --mem-fraction-static or --ascend-moe-window-bytes, or choose --ascend-moe-windows memfabric"
        )
    _open = True
    address: int | None = None

    def release() -> None:
        global _open
        if address:
            module.aclshmem_free(address)
        module.aclshmem_finalize()
        _open = False

    try:
        try:
            address = module.aclshmem_align(ALIGNMENT, rounded(place.window_bytes))
        except RuntimeError as error:
            raise Unsupported(
                f"ACLSHMEM has no room for a window of {rounded(place.window_bytes)} bytes in a heap of {heap}"
                f" ({error}); choose --ascend-moe-windows memfabric"
            ) from error
        bases = tuple(module.aclshmem_ptr(address, peer) for peer in range(place.ranks))
        for peer, base in enumerate(bases):
            if not base:
                raise Unsupported(
                    f"the NPU of {place.named(peer)} cannot be reached from that of {place.named(place.rank)}"
                    " (aclshmem_ptr): all ranks need NPUs of one HCCS domain. Choose them with"
                    " ASCEND_RT_VISIBLE_DEVICES, or lower --tp-size"
                )
        refuse_bases(bases, "ACLSHMEM")
    except Unsupported:
        release()
        raise
    return Pool(bases, release)


def _without_tls(module: Any) -> None:
    # Without this the library asks for certificates.
    if failed := module.set_conf_store_tls(False, ""):
        raise Unsupported(
            f"ACLSHMEM cannot be used: set_conf_store_tls returned {failed}. Choose --ascend-moe-windows memfabric"
        )
