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
        self._matrix: torch.Tensor | None = None
        self._counted: Any = None

    def dispatched(
        self, kind: Kind, begun_ns: int, tokens: int, rows: int, matrix: torch.Tensor, first_round: bool
    ) -> None:
        """A dispatch, begun at `begun_ns` of `time.perf_counter_ns`, has ended; matrix [ranks, experts]: its counts."""
        counts = self.phases[kind]
        counts.calls += first_round
        counts.rounds += 1
        counts.tokens += tokens
        counts.rows += rows
        # On a device the counts would have to be waited for.
        if self.measures_imbalance and matrix.is_cpu:
            # A session writes its counts into one matrix for ever: to look at it anew takes longer than to add it up.
            if matrix is not self._matrix:
                self._matrix, self._counted = matrix, _by_rank_and_expert(matrix)
            counts.largest_rows += int(self._counted.sum(axis=(0, 2)).max())
        counts.dispatch_ns += time.perf_counter_ns() - begun_ns

    def planned(self, begun_ns: int) -> None:
        """The plan of a prefill call, begun at `begun_ns`, is known; its time counts as that of the dispatch."""
        self.phases[Kind.PREFILL].dispatch_ns += time.perf_counter_ns() - begun_ns

    def combined(self, kind: Kind, begun_ns: int) -> None:
        """The combine of a dispatch of `kind`, which began at `begun_ns`, has ended."""
        self.phases[kind].combine_ns += time.perf_counter_ns() - begun_ns


def rows_by_rank(matrix: torch.Tensor) -> list[int]:
    """Rows that each rank received, from the counts [ranks, experts] of a dispatch."""
    received: list[int] = _by_rank_and_expert(matrix.cpu()).sum(axis=(0, 2)).tolist()
    return received


def _by_rank_and_expert(matrix: torch.Tensor) -> Any:
    """A view [source, rank, expert of that rank], of numpy, which is quicker than torch for so few numbers."""
    ranks, experts = matrix.shape
    return matrix.numpy().reshape(ranks, ranks, experts // ranks)


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
