"""`relay` and `relay-direct`: the same rows through relay buffers in the same kind of shared memory."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from sglang_ascend_moe.errors import PeerTimeout
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.delivery_check import exchange_problem
from sglang_ascend_moe.launch.bench.drawn_routing import Batch
from sglang_ascend_moe.launch.bench.records import Op
from sglang_ascend_moe.launch.bench.row_kernels import Shape, Tokens, library
from sglang_ascend_moe.launch.bench.shared_memory import TIMEOUT_S, RelayMemory
from sglang_ascend_moe.launch.bench.variants.variant import Arrived, Ranks, Scratch, Variant, rows_view


class Relay(Variant):
    """Packed by destination into the receiver's relay buffer, flags, copied out, put in order; back in the same way.

    With `direct` a rank puts rows in order, and sums them up, right out of its relay buffer: the least that a relay
    buffer can cost.
    """

    stores = ("cached", "streaming")

    def __init__(
        self, case: Case, ranks: Ranks, memory: RelayMemory, scratch: Scratch, received_rows: int, *, direct: bool
    ) -> None:
        """`received_rows`: what arrives at this rank."""
        self._case = case
        self._shapes: dict[Op, Shape] = {op: Shape.of(case, ranks.rank) for op in ("dispatch", "combine")}
        shape = self._shapes["dispatch"]
        self._memory = memory
        rows = max(received_rows, case.tokens * case.topk)
        # Results go where rows were received, and come back to where the rows lay: each is done with by then.
        received, placed = scratch.take(rows * max(shape.packed_bytes, shape.result_bytes))
        quantised = case.dtype == "int8"
        self._scales = torch.empty(received_rows, dtype=torch.float32) if quantised else None
        self._arrived = Arrived(
            rows_view(placed, received_rows, case.hidden, torch.int8 if quantised else torch.bfloat16),
            self._scales,
            rows_view(received, received_rows, case.hidden, torch.bfloat16),
        )
        self._received = None if direct else ctypes.c_void_p(received.data_ptr())
        self._returned = None if direct else ctypes.c_void_p(placed.data_ptr())
        self._matrix = torch.empty(case.ranks, case.experts, dtype=torch.int32)
        self._tokens = Tokens(case)
        self._combined = scratch.sums(case)

    def use(self, op: Op, store: str) -> None:
        self._shapes[op].streaming = store == "streaming"

    def dispatch(self, batch: Batch) -> Tokens:
        tokens = self._tokens
        tokens.take(batch.x, batch.ids, batch.weights)
        late = library().bench_relay_dispatch(
            ctypes.byref(self._shapes["dispatch"]), ctypes.byref(self._memory.words), tokens.reference, self._received,
            self._matrix.data_ptr(), self._arrived.rows.data_ptr(),
            None if self._scales is None else self._scales.data_ptr(),
        )  # fmt: skip
        self._raise_if(late)
        return tokens

    def arrived(self, handle: Tokens) -> Arrived:  # noqa: ARG002 - there is one dispatch at a time
        return self._arrived

    def combine(self, handle: Tokens) -> Tensor:
        late = library().bench_relay_combine(
            ctypes.byref(self._shapes["combine"]), ctypes.byref(self._memory.words), handle.reference,
            self._matrix.data_ptr(), self._arrived.out.data_ptr(), self._returned, self._combined.data_ptr(),
        )  # fmt: skip
        self._raise_if(late)
        return self._combined

    def problem(self, case: Case, ranks: Ranks, batch: Batch) -> str | None:
        return exchange_problem(self, case, ranks, batch)

    def _raise_if(self, late: int) -> None:
        if late:
            raise PeerTimeout(f"a rank did not come to the relay buffers within {TIMEOUT_S:g} s")
