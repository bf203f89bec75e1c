"""What an exchange has done in this process so far: whole numbers that the steps of the exchange count.

Always counted, because it costs a few additions per MoE layer. `live_state` and `metrics` read the numbers.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import torch

from sglang_ascend_moe.native.codes import Kind

PHASES = {Kind.DECODE: "decode", Kind.PREFILL: "prefill"}


class PhaseCounts(msgspec.Struct):
    """Totals of one phase on this rank since its exchange was opened.

    calls: MoE layers; rounds: exchanges of rows, one per call in decode. tokens: brought by this rank; rows: received
    for its experts. largest_rows: rows of the rank that received most, summed over rounds; counted only if
    `Observation.measures_imbalance`. dispatch_ns, combine_ns: nanoseconds in the two halves, waits included.
    """

    calls: int = 0
    rounds: int = 0
    tokens: int = 0
    rows: int = 0
    largest_rows: int = 0
    dispatch_ns: int = 0
    combine_ns: int = 0


class Observation:
    """The numbers of one exchange. `phases` has an entry for each kind of exchange that moves rows."""

    def __init__(self) -> None:
        self.phases = {kind: PhaseCounts() for kind in PHASES}
        self.measures_imbalance = False
        self._counted: torch.Tensor | None = None
        self._by_rank: Any = None

    def dispatched(
        self, kind: Kind, begun_ns: int, tokens: int, rows: int, counted: torch.Tensor, first_round: bool
    ) -> None:
        """A dispatch, begun at `begun_ns` of `time.perf_counter_ns`, has ended; counted: as `rows_by_rank` takes it."""
        counts = self.phases[kind]
        counts.calls += first_round
        counts.rounds += 1
        counts.tokens += tokens
        counts.rows += rows
        # On a device the counts would have to be waited for.
        if self.measures_imbalance and counted.is_cpu:
            # A session writes its counts into one tensor for ever: to look at it anew takes longer than to add it up.
            if counted is not self._counted:
                self._counted, self._by_rank = counted, _by_rank(counted)
            counts.largest_rows += int(self._by_rank.sum(axis=(0, 2)).max())
        counts.dispatch_ns += time.perf_counter_ns() - begun_ns

    def planned(self, begun_ns: int) -> None:
        """The plan of a prefill call, begun at `begun_ns`, is known; its time counts as that of the dispatch."""
        self.phases[Kind.PREFILL].dispatch_ns += time.perf_counter_ns() - begun_ns

    def combined(self, kind: Kind, begun_ns: int) -> None:
        """The combine of a dispatch of `kind`, which began at `begun_ns`, has ended."""
        self.phases[kind].combine_ns += time.perf_counter_ns() - begun_ns


def rows_by_rank(counted: torch.Tensor) -> list[int]:
    """Rows that each rank received in a dispatch: from the counts [ranks, experts] of every source, or their sums
    [ranks]."""
    received: list[int] = _by_rank(counted.cpu()).sum(axis=(0, 2)).tolist()
    return received


def _by_rank(counted: torch.Tensor) -> Any:
    """A view [source, rank, expert of that rank], of numpy, which is quicker than torch for so few numbers."""
    ranks, last = counted.shape[0], counted.shape[-1]
    return counted.numpy().reshape(-1, ranks, last // ranks)


class GraphCounts(msgspec.Struct):
    """Decode graphs of this process, written by `graph_capture`.

    state: `none`, or the kind of graph, such as `tape`. buckets: batch sizes captured. replays: since start-up.
    """

    state: str = "none"
    buckets: list[int] = []
    replays: int = 0

    def captured(self, state: str, bucket: int) -> None:
        """A graph of this kind was captured for batches of `bucket` requests."""
        self.state = state
        self.buckets = sorted({*self.buckets, bucket})

    def forget(self) -> None:
        """The graphs are gone; replays stay counted."""
        self.state, self.buckets = "none", []


graphs = GraphCounts()
"""The one object of the process, since a process serves with one graph backend."""
