"""What every way of moving rows offers to the harness."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.drawn_routing import Batch
from sglang_ascend_moe.launch.bench.records import Op
from sglang_ascend_moe.launch.bench.shared_memory import Barrier


class Ranks(NamedTuple):
    """This process among the others. `mpi`: mpi4py's communicator of the same ranks, None without MPI."""

    rank: int
    group: dist.ProcessGroup
    barrier: Barrier
    mpi: Any


class Arrived(NamedTuple):
    """What lies before the experts: rows [>= total, hidden], scales [>= total] if quantised, a place for results."""

    rows: Tensor
    scales: Tensor | None
    out: Tensor


class Variant(ABC):
    """A way of moving rows. Every rank makes the same calls in the same order.

    Raises where it is created: `Unsupported` for a case that it cannot do.
    """

    stores: Sequence[str] = ()
    """How rows can be written, where there is a choice; the harness takes the fastest for each operation."""

    def use(self, op: Op, store: str) -> None:
        """Writes rows with `store` from now on, one of `stores`."""
        raise Unsupported(f"{type(self).__name__} has no choice how to write rows; {op} with {store!r} was asked for")

    def prepare(self, batch: Batch, pristine: Tensor) -> None:
        """Before each dispatch: x has just been written by this rank, as by the layer before it."""
        batch.x.copy_(pristine)

    @abstractmethod
    def dispatch(self, batch: Batch) -> Any:
        """Timed. Returns the handle for the other two."""

    @abstractmethod
    def arrived(self, handle: Any) -> Arrived:
        """Not timed. What the experts work on."""

    def computed(self, handle: Any) -> None:  # noqa: B027 - most variants have nothing to let go of
        """Not timed, before combine: the experts do not need the rows any more, which a variant may have made anew."""

    @abstractmethod
    def combine(self, handle: Any) -> Tensor:
        """Timed. Each token's weighted sum, in memory that is kept for it where the variant can write it there."""

    @abstractmethod
    def problem(self, case: Case, ranks: Ranks, batch: Batch) -> str | None:
        """Runs once and compares what was delivered with what had to be; None if it is right."""

    def close(self) -> None:
        """Lets go of all memory."""
        self.__dict__.clear()


class Scratch:
    """Private memory of a rank that variants use in turn: only one of them runs at a time."""

    def __init__(self) -> None:
        self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
        self._sums: Tensor | None = None

    def sums(self, case: Case) -> Tensor:
        """[tokens, hidden], where they write the sums."""
        if self._sums is None:
            self._sums = torch.empty(case.tokens, case.hidden, dtype=torch.bfloat16)
        return self._sums

    def take(self, size: int) -> list[Tensor]:
        """The two buffers, each of at least `size` bytes; their content is whatever the last user left."""
        if self._buffers[0].numel() < size:
            self._buffers = [torch.empty(0, dtype=torch.uint8)] * 2
            self._buffers = [torch.empty(size, dtype=torch.uint8) for _ in range(2)]
        return self._buffers


def rows_view(buffer: Tensor, rows: int, hidden: int, dtype: torch.dtype) -> Tensor:
    """The beginning of a byte buffer as [rows, hidden]."""
    return buffer[: rows * hidden * dtype.itemsize].view(dtype).view(rows, hidden)
