"""Windows of a machine without accelerator: anonymous shared memory (memfd).

A window never has a name in the file system: nothing can be left behind, even by SIGKILL, and nobody can open it who
was not handed the descriptor. The size is sealed, so that no holder of the descriptor can truncate it under us.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import mmap
import os
from contextlib import ExitStack

import torch

from sglang_ascend_moe.errors import Corruption, Unsupported
from sglang_ascend_moe.windows import allocations
from sglang_ascend_moe.windows.layout import WindowLayout

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create_window(layout: WindowLayout) -> int:
    """Returns the descriptor of a new zeroed window of `layout.total_bytes`; the caller closes it.

    Raises `Unsupported` if the system refuses it.
    """
    allocations.report(layout.total_bytes)
    with ExitStack() as on_failure:
        try:
            descriptor = os.memfd_create("ascend-moe-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            on_failure.callback(os.close, descriptor)
            os.ftruncate(descriptor, layout.total_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            raise Unsupported(
                f"a window of {layout.total_bytes} bytes cannot be made ({error}); `ascend-moe doctor` shows the limits"
            ) from error
        on_failure.pop_all()
    return descriptor


class MappedWindow:
    """One rank's window as mapped in this process.

    The mapping lives as long as this object or any tensor made from it.
    """

    device = torch.device("cpu")

    def __init__(self, descriptor: int, layout: WindowLayout) -> None:
        """Maps the window behind `descriptor`, which stays the caller's to close.

        Raises `Corruption` if it has not the sealed size that the layout says.
        """
        size = os.fstat(descriptor).st_size
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        if size != layout.total_bytes or seals & _SEALS != _SEALS:
            raise Corruption(
                f"a peer's window has {size} bytes (seals {seals:#x}); the layout says {layout.total_bytes}, sealed"
            )
        self._memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def view(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The bytes from `offset` on as a tensor."""
        if 0 in shape:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self._memory, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)
