"""The arguments of a dispatch and of its combines, as the kernels take them."""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from sglang_ascend_moe.native import abi
from sglang_ascend_moe.native.codes import Kind, Part
from sglang_ascend_moe.windows.layout import ELEMENT_BYTES, WindowLayout


class DispatchCall:
    """The arguments of a dispatch and of its combines, and the memory that it leaves behind for them.

    Made for so many tokens at most and used again and again, because making it anew costs more than a small dispatch.

    positions: int64 [tokens, topk], destination rank << 32 | row, or -1; weights: float32 [tokens, topk];
    counts: int64 [local experts]. All as the last dispatch left them.
    """

    __slots__ = ("_calls", "_element_bytes", "_native", "address", "combine", "combine_reference", "counts", "dispatch",
                 "positions", "reference", "weights")  # fmt: skip

    def __init__(self, native: abi.Call, calls: Any, layout: WindowLayout, tokens: int, matrix: torch.Tensor) -> None:
        """`native` says whose call it is and how it is made; `calls` is the module of kernels/python/calls.cpp, None
        for the kernels of a device, which take no tensors of the host.

        `matrix` is the session's, on whose device everything lies.
        """
        p = layout.parameters
        self.positions = torch.empty(tokens, p.topk, dtype=torch.int64, device=matrix.device)
        self.weights = torch.empty(tokens, p.topk, dtype=torch.float32, device=matrix.device)
        self.counts = torch.empty(p.local_experts, dtype=torch.int64, device=matrix.device)
        self._calls = calls
        self._native = native
        self.address = ctypes.addressof(native)
        self.dispatch: abi.Dispatch = native.dispatch
        self.combine: abi.Combine = native.combine
        self.dispatch.positions = self.combine.positions = self.positions.data_ptr()
        self.dispatch.counts, self.dispatch.matrix = self.counts.data_ptr(), matrix.data_ptr()
        self.dispatch.kept_weights = self.weights.data_ptr()
        self.reference = ctypes.byref(self.dispatch)
        self.combine_reference = ctypes.byref(self.combine)
        self._element_bytes = ELEMENT_BYTES[p.dtype]

    def take_fitting(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, kind: Kind, part: Part, *, keep_weights: bool,
        continues: bool = False,
    ) -> bool:  # fmt: skip
        """`take` of a caller's tensors, if the kernels on the host take them as they are; else nothing is done."""
        if self._calls is None:
            return False
        return bool(self._calls.take(self.address, x, ids, weights, kind, part, keep_weights, continues))

    def fits_out(self, out: torch.Tensor) -> bool:
        """Points combine at a caller's `out`, if the kernels on the host can write it as it is."""
        return self._calls is not None and bool(self._calls.take_out(self.address, out))

    def take(
        self, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, kind: Kind, part: Part,
        *, keep_weights: bool, continues: bool = False, row_bytes: int = 0,
    ) -> None:  # fmt: skip
        """Points the arguments at tensors that stay alive and where they are until the dispatch is done.

        x [tokens, hidden] with dense rows; ids [tokens, topk] contiguous; weights float32 [tokens, topk] contiguous, of
        which the dispatch makes a copy for combine if it is to keep them, else they too have to stay until then.
        A dispatch that `continues` stays in the slot of the one before, as a further round of the same call.
        `row_bytes`, if not 0, are all that is moved of each row, on every rank alike; then x [tokens] may be rows of
        anything that is so long, a multiple of 16.
        """
        if not row_bytes and self.take_fitting(
            x, ids, weights, kind, part, keep_weights=keep_weights, continues=continues
        ):
            return
        call = self.dispatch
        call.x = x.data_ptr()
        call.x_stride = x.stride()[0] * (x.element_size() if row_bytes else self._element_bytes)
        call.tokens = self.combine.tokens = x.shape[0]
        call.ids = ids.data_ptr()
        call.ids_bytes = 8 if ids.dtype is torch.int64 else 4
        call.kind = kind
        call.part = self.combine.part = part
        call.continues = continues
        call.row_bytes = row_bytes
        self.combine.positions = call.positions
        call.weights = None
        if keep_weights:
            self.weights[: x.shape[0]].copy_(weights)
            self.combine.weights = call.kept_weights
        else:
            self.combine.weights = weights.data_ptr()
