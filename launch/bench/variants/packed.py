"""`collective-native` and `mpi`: a library's all-to-all between our native row kernels."""

from __future__ import annotations

import ctypes
from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.delivery_check import exchange_problem
from sglang_ascend_moe.launch.bench.drawn_routing import Batch
from sglang_ascend_moe.launch.bench.records import Op
from sglang_ascend_moe.launch.bench.row_kernels import Shape, Tokens, library, pointers
from sglang_ascend_moe.launch.bench.variants.variant import Arrived, Ranks, Scratch, Variant, rows_view


class _Handle(NamedTuple):
    """`sent`, `received`: rows to and from each rank."""

    tokens: Tokens
    sent: list[int]
    received: list[int]
    arrived: Arrived


class Packed(Variant):
    """Counts to everyone, rows packed by destination, an all-to-all, rows put in order; back in the same way.

    Two buffers are used in turn, each again as soon as what it held has been read.
    """

    stores = ("cached", "streaming")

    def __init__(self, case: Case, ranks: Ranks, scratch: Scratch, received_rows: int) -> None:
        """`received_rows`: what arrives at this rank."""
        self._case = case
        self._rank = ranks.rank
        self._shapes: dict[Op, Shape] = {op: Shape.of(case, ranks.rank) for op in ("dispatch", "combine")}
        self._row_bytes = self._shapes["dispatch"].packed_bytes
        self._result_bytes = self._shapes["dispatch"].result_bytes
        rows = max(received_rows, case.tokens * case.topk)
        self._first, self._second = scratch.take(rows * max(self._row_bytes, self._result_bytes))
        self._matrix = torch.empty(case.ranks, case.experts, dtype=torch.int32)
        self._tokens = Tokens(case)
        self._combined = scratch.sums(case)
        self._row_type = torch.int8 if case.dtype == "int8" else torch.bfloat16

    def use(self, op: Op, store: str) -> None:
        self._shapes[op].streaming = store == "streaming"

    def dispatch(self, batch: Batch) -> _Handle:
        shape = ctypes.byref(self._shapes["dispatch"])
        tokens = self._tokens
        tokens.take(batch.x, batch.ids, batch.weights)
        library().bench_count(shape, tokens.reference)
        self._gather_counts(tokens.counts, self._matrix)
        local = self._case.experts // self._case.ranks
        sent = tokens.counts.view(-1, local).sum(dim=1).tolist()
        received = self._matrix[:, self._rank * local : (self._rank + 1) * local].sum(dim=1).tolist()
        library().bench_pack(shape, tokens.reference, self._blocks(self._first, sent, self._row_bytes))
        self._all_to_all(self._first, sent, self._second, received, self._row_bytes)
        total = sum(received)
        scales = torch.empty(total, dtype=torch.float32) if self._row_type == torch.int8 else None
        library().bench_restore(
            shape, self._matrix.data_ptr(), self._blocks(self._second, received, self._row_bytes),
            self._first.data_ptr(), None if scales is None else scales.data_ptr(),
        )  # fmt: skip
        hidden = self._case.hidden
        arrived = Arrived(
            rows_view(self._first, total, hidden, self._row_type),
            scales,
            rows_view(self._second, total, hidden, torch.bfloat16),
        )
        return _Handle(tokens, sent, received, arrived)

    def arrived(self, handle: _Handle) -> Arrived:
        return handle.arrived

    def combine(self, handle: _Handle) -> Tensor:
        shape = ctypes.byref(self._shapes["combine"])
        outgoing = self._blocks(self._first, handle.received, self._result_bytes)
        library().bench_return(shape, self._matrix.data_ptr(), self._second.data_ptr(), outgoing)
        self._all_to_all(self._first, handle.received, self._second, handle.sent, self._result_bytes)
        returned = self._blocks(self._second, handle.sent, self._result_bytes)
        library().bench_reduce(shape, handle.tokens.reference, returned, self._combined.data_ptr())
        return self._combined

    def problem(self, case: Case, ranks: Ranks, batch: Batch) -> str | None:
        return exchange_problem(self, case, ranks, batch)

    @abstractmethod
    def _gather_counts(self, own: Tensor, matrix: Tensor) -> None:
        """own [experts] int32 of every rank into matrix [ranks, experts]."""

    @abstractmethod
    def _all_to_all(
        self, outgoing: Tensor, sent: list[int], incoming: Tensor, received: list[int], row_bytes: int
    ) -> None:
        """Blocks of `sent` rows, one per rank, from the beginning of `outgoing`; `received` into `incoming`."""

    @staticmethod
    def _blocks(buffer: Tensor, rows: list[int], row_bytes: int) -> ctypes.Array[ctypes.c_void_p]:
        address = buffer.data_ptr()
        return pointers([address + sum(rows[:peer]) * row_bytes for peer in range(len(rows))])


class CollectiveNative(Packed):
    """Over gloo."""

    def __init__(self, case: Case, ranks: Ranks, scratch: Scratch, received_rows: int) -> None:
        super().__init__(case, ranks, scratch, received_rows)
        self._group = ranks.group

    def _gather_counts(self, own: Tensor, matrix: Tensor) -> None:
        dist.all_gather(list(matrix.unbind()), own, group=self._group)

    def _all_to_all(
        self, outgoing: Tensor, sent: list[int], incoming: Tensor, received: list[int], row_bytes: int
    ) -> None:
        # In rows, so that the splits stay small numbers.
        target = incoming[: sum(received) * row_bytes].view(-1, row_bytes)
        source = outgoing[: sum(sent) * row_bytes].view(-1, row_bytes)
        dist.all_to_all_single(target, source, received, sent, group=self._group)


class Mpi(Packed):
    """Over MPI's Alltoallv."""

    def __init__(self, case: Case, ranks: Ranks, scratch: Scratch, received_rows: int) -> None:
        from mpi4py import MPI

        super().__init__(case, ranks, scratch, received_rows)
        self._communicator = ranks.mpi
        # In rows: counts of bytes would not fit MPI's 32 bits.
        sizes = {self._row_bytes, self._result_bytes}
        self._types = {size: MPI.BYTE.Create_contiguous(size).Commit() for size in sizes}

    def _gather_counts(self, own: Tensor, matrix: Tensor) -> None:
        self._communicator.Allgather(own.numpy(), matrix.numpy())

    def _all_to_all(
        self, outgoing: Tensor, sent: list[int], incoming: Tensor, received: list[int], row_bytes: int
    ) -> None:
        kind = self._types[row_bytes]
        self._communicator.Alltoallv([outgoing.numpy(), sent, None, kind], [incoming.numpy(), received, None, kind])

    def close(self) -> None:
        for kind in self._types.values():
            kind.Free()
        super().close()
