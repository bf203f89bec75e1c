"""Windows in the memory of Ascend devices: what their providers (`memfabric`, `aclshmem`) have in common.

A provider gives every rank memory of its own device that all devices of the exchange can address. Kernels receive the
address of each rank's window and know nothing else of the provider. No NPU has run this.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from sglang_ascend_moe.errors import Unsupported, rank_in_words

ALIGNMENT = 512
"""Of a window's base in bytes: what Ascend's matrix operators and widest copies want."""

HUGE_PAGE = 2 << 20
"""Pooled memory is mapped in pages of so many bytes; sizes are rounded up to it."""


class Place(NamedTuple):
    """Where a rank asks for its window: `nodes` [ranks] says where each rank runs, `device` is the index of its NPU,
    `meeting` what rank 0's `meeting` made."""

    rank: int
    nodes: Sequence[int]
    device: int
    window_bytes: int
    meeting: bytes

    @property
    def ranks(self) -> int:
        return len(self.nodes)

    def named(self, rank: int) -> str:
        """As messages name it."""
        return rank_in_words(rank, self.nodes)


class Pool(NamedTuple):
    """The windows of all ranks as this rank's device addresses them; `bases` [ranks]."""

    bases: tuple[int, ...]
    release: Callable[[], None]


class DeviceWindow:
    """The window of this rank, or of a peer, as memory of the current device; released by its pool."""

    def __init__(self, address: int, device: torch.device) -> None:
        self.address = address
        self.device = device

    def view(self, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The bytes from `offset` on as a tensor, without a copy."""
        if 0 in shape:
            return torch.empty(shape, dtype=dtype, device=self.device)
        return _tensor_at(self.address + offset, shape, dtype, self.device)


def _tensor_at(address: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A contiguous tensor over memory that is someone else's, as torch_npu makes them in `npu/_graph_tree.py`."""
    import torch_npu

    stride = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    nbytes = math.prod(shape) * dtype.itemsize
    storage = torch_npu._C._construct_storage_from_data_pointer(address, device, nbytes)
    described = {
        "data_ptr": address, "device": device, "nbytes": nbytes, "dtype": dtype, "size": shape, "stride": stride,
        "storage_offset": 0,
    }  # fmt: skip
    tensor: torch.Tensor = torch_npu._C._construct_NPU_Tensor_From_Storage_And_Metadata(described, storage)
    return tensor


def free_place(host: str) -> str:
    """`HOST:PORT` or `[HOST]:PORT` with a port that is free now; `host` is an address of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        port = server.getsockname()[1]
    return f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"


def rounded(window_bytes: int) -> int:
    """The bytes that a provider is asked for."""
    return -(-window_bytes // HUGE_PAGE) * HUGE_PAGE


def lack_of_memory(window_bytes: int, device: torch.device) -> str:
    """Why a window does not fit the memory that `device` has left; empty if it does."""
    free, total = torch.npu.mem_get_info(device)
    needed = rounded(window_bytes)
    if needed <= free:
        return ""
    return (
        f"a window of {needed} bytes does not fit the memory of {device}, which has {free} of {total} bytes"
        " left. Lower --mem-fraction-static, --ascend-moe-window-bytes (prefill then takes more rounds),"
        " --chunked-prefill-size or --max-running-requests"
    )


def refuse_bases(bases: Sequence[int], provider: str) -> None:
    """Raise `Unsupported` for windows at addresses that the kernels cannot use."""
    for rank, base in enumerate(bases):
        if base % ALIGNMENT:
            raise Unsupported(
                f"{provider} put the window of rank {rank} at {base:#x}, which is no multiple of {ALIGNMENT} bytes; try"
                " the other value of --ascend-moe-windows, and report this with the version of the provider"
            )
