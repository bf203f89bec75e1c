"""Makes an exchange on the emulated NPU possible in this process, by what a real NPU would have in those places."""

from __future__ import annotations

import ctypes
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from tests.npu.cann import transfers
from tests.npu.cann.library_names import CANN, KERNELS_LIBRARY

MEMFABRIC_PACKAGE = "memfabric_hybrid"
KERNELS_MODULE = "sglang_ascend_moe._ascend_kernels"
CORES = 2
"""Vector cores of a die: on few of them kernels run faster."""


def install(folder: Path, cores: int = CORES) -> None:
    """Call it after `emulated.install`, and before an exchange is opened.

    folder: what `build_cann.build` has made. Afterwards `_ascend_kernels` is built, memfabric is installed, and
    torch_npu makes tensors over memory that somebody else owns.
    """
    ctypes.CDLL(str(folder / CANN)).emulated_cann_use_cores(ctypes.c_int64(cores))
    torch.ops.load_library(str(folder / CANN))
    _module(KERNELS_MODULE, origin=folder / KERNELS_LIBRARY)
    package = _module(MEMFABRIC_PACKAGE)
    package.get_lib_path = lambda: str(folder)
    package.create_config_store = transfers.create_config_store
    package.TransferEngine, package.TransDataOpType = transfers.TransferEngine, transfers.TransDataOpType
    torch_npu = _module("torch_npu")
    if "_C" not in vars(torch_npu):
        torch_npu._C = ModuleType("torch_npu._C")
    private = torch_npu._C
    private._construct_storage_from_data_pointer = _storage_at
    private._construct_NPU_Tensor_From_Storage_And_Metadata = _tensor_of


def violation(folder: Path) -> str:
    """The first rule of the host model that a kernel broke in this process, or an empty text."""
    said = ctypes.CDLL(str(folder / KERNELS_LIBRARY)).cann_stand_in_violation
    said.restype = ctypes.c_char_p
    return said().decode()


def _module(name: str, origin: Path | None = None) -> Any:
    """The module of this name; made if there is none."""
    if name not in sys.modules:
        made = ModuleType(name, "Part of the emulated NPU: test equipment.")
        made.__spec__ = ModuleSpec(name, None, origin=None if origin is None else str(origin))
        sys.modules[name] = made
    return sys.modules[name]


def _storage_at(address: int, device: torch.device, nbytes: int) -> torch.UntypedStorage:
    return torch.ops.emulated_cann.at_address(address, nbytes, device).untyped_storage()


def _tensor_of(described: dict[str, Any], storage: torch.UntypedStorage) -> torch.Tensor:
    empty = torch.empty(0, dtype=described["dtype"], device=described["device"])
    return empty.set_(storage, described["storage_offset"], described["size"], described["stride"])
