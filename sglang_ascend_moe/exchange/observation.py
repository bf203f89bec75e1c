"""What an exchange has done in this process so far: sums and histograms that the steps of the exchange count.

Always counted, because it costs a few additions per MoE layer. `live_state` and `metrics` read the numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import torch

from sglang_ascend_moe.native.codes import Kind
from sglang_ascend_moe.native.library import native_types

if TYPE_CHECKING:
    from sglang_ascend_moe._host_kernels import Counters

PHASES = {Kind.DECODE: "decode", Kind.PREFILL: "prefill"}


class PhaseCounts(msgspec.Struct):
    """Totals of one phase on this rank since its exchange was opened.

    calls: MoE layers; rounds: exchanges of rows, one per call in decode. tokens: brought by this rank; rows: received
    for its experts. largest_rows: rows of the rank that received most, summed over rounds; counted only if
    `Counters.measures_imbalance`. dispatch_ns, combine_ns: nanoseconds in the two halves, waits included. Of a device's
    replays nothing is counted, of its decode calls that nobody waits for no rows, and no largest rows at all.
    """

    calls: int = 0
    rounds: int = 0
    tokens: int = 0
    rows: int = 0
    largest_rows: int = 0
    dispatch_ns: int = 0
    combine_ns: int = 0


class Histogram(NamedTuple):
    """counts[i] values were at most bounds[i] and more than the bound before; counts[-1]: more than all bounds."""

    bounds: list[float]
    counts: list[int]
    sum: float


class Observation:
    """The numbers of one exchange, which `counters` counts."""

    def __init__(self, ranks: int) -> None:
        self.counters: Counters = native_types().Counters(ranks)

    @property
    def phases(self) -> dict[Kind, PhaseCounts]:
        """As they are now, for each kind of exchange that moves rows."""
        return {kind: PhaseCounts(*self.counters.sums(kind)) for kind in PHASES}

    def histograms(self, kind: Kind) -> dict[str, Histogram]:
        """Of what each call of a kind was, so far, by name.

        dispatch_seconds, combine_seconds, wait_seconds: of an exchange, the last in both halves together; rows: of this
        rank; imbalance: rows of the rank that got most over the mean, if measured; rounds: of a prefill call. A device
        gives no waits, and of calls that nobody waits for no times of dispatch and no rows.
        """
        return {name: Histogram(*found) for name, found in self.counters.histograms(kind).items()}

    @property
    def rounds(self) -> int:
        """Of both phases."""
        return self.counters.rounds


def rows_by_rank(counted: torch.Tensor) -> list[int]:
    """Rows that each rank received in a dispatch: from the counts [ranks, experts] of every source, or their sums
    [ranks]."""
    ranks, last = counted.shape[0], counted.shape[-1]
    received: list[int] = counted.reshape(-1, ranks, last // ranks).sum(dim=(0, 2)).tolist()
    return received


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
