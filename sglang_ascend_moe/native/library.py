"""Which kernels a process uses, and the layout of windows as they take it."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import msgspec

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.windows.layout import WindowLayout

if TYPE_CHECKING:
    from sglang_ascend_moe._host_kernels import Layout, Library

_LIBRARIES = {"cpu": "sglang_ascend_moe._host_kernels", "npu": "sglang_ascend_moe._ascend_kernels"}
_ELEMENTS = {"bfloat16": 0, "float16": 1, "float32": 2}

_chosen_library: str | None = None


def use_library(path: str | None) -> None:
    """Makes sessions that this process opens from now on use the kernels in another library with the same C ABI, such
    as one under test; None goes back to the package's own."""
    global _chosen_library
    _chosen_library = path


def own_library(device: str) -> str:
    """The path of the package's library for tensors on "cpu" or "npu". Raises `Unsupported` if it is not built."""
    found = importlib.util.find_spec(_LIBRARIES[device])
    if found is not None and found.origin is not None:
        return found.origin
    if device == "npu":
        raise Unsupported("the Ascend kernels are not built; run `ascend-moe build-kernels` on this machine")
    raise Unsupported("the native kernels are not built; install the package with `pip install -e .` (or `make venv`)")


def library(device: str = "cpu") -> Library:
    """The kernels for tensors on `device`. Raises `ProtocolMismatch` if they were built from other sources than the
    package's, and `Unsupported` if they are not built."""
    return _load(_chosen_library or own_library(device))


@cache
def native_types() -> ModuleType:
    """The module of the types for all kernels, `_host_kernels`. Raises `Unsupported` if it is not built."""
    own_library("cpu")
    return importlib.import_module("sglang_ascend_moe._host_kernels")


@cache
def _load(path: str) -> Library:
    loaded: Library = native_types().Library(path)
    return loaded


def native_layout(layout: WindowLayout) -> Layout:
    """The layout as kernels take it."""
    p = layout.parameters
    described: Layout = native_types().Layout(
        ranks=p.ranks, experts=p.num_experts, hidden=p.hidden, topk=p.topk, max_tokens=p.max_tokens, slots=p.slots,
        element=_ELEMENTS[p.dtype], distinct_topk=p.distinct_topk, verify=p.verify, quantised=p.quant is not None,
        row_bytes=p.row_bytes, out_row_bytes=p.out_row_bytes, count_units=layout.count_units,
        granting=layout.granting, counted=layout.counted_experts, capacity=layout.capacity,
        expert_rows=layout.expert_rows, mailbox_bytes=layout.mailbox_bytes, total_bytes=layout.total_bytes,
        **msgspec.structs.asdict(layout.offsets),
    )  # fmt: skip
    return described


def select_kernels(name: str | None) -> str:
    """Makes this process use the row kernels of an instruction set; None takes the widest. Returns which are in use.

    All give the same bits. Raises `Unsupported` if this processor has not that instruction set.
    """
    selected = library().select_kernels(name)
    if selected is None:
        raise Unsupported(f"this processor cannot run the row kernels {name!r}; None selects those that it can")
    return selected
