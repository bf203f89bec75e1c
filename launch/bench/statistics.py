"""From nanoseconds of every rank and iteration to a median and its spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WIDEST = 2.5
"""Of a median that is to be believed: how many times the 10th percentile the 90th may be.

Where nothing else ran it was at most 2.1 times (docs/benchmarks: relay-free, both relays and MPI; gloo's threads and
copies of few bytes vary more). With one, two or four programs that computed beside two ranks on two cores it was 2.8 to
100 times for nine numbers of ten, and medians were ten times as large.
"""


class Spread(NamedTuple):
    """Microseconds."""

    median: float
    p10: float
    p90: float

    @property
    def doubtful(self) -> bool:
        """Whether iterations differ so much that the median says more of the machine than of what was measured."""
        return self.p90 > WIDEST * self.p10


def elapsed(begins: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]) -> list[int]:
    """The time of each iteration: until its last rank has ended, since its first has begun. Both [ranks][iterations].

    A rank that begins late, because others take its core, then counts alike for all: whether it is waited for or not.
    """
    first, last = zip(*begins, strict=True), zip(*ends, strict=True)
    return [max(ended) - min(begun) for begun, ended in zip(first, last, strict=True)]


def spread(nanoseconds: Sequence[int]) -> Spread:
    """Median, 10th and 90th percentile, interpolated between neighbours."""
    ordered = sorted(nanoseconds)
    return Spread(*(quantile(ordered, part) / 1000 for part in (0.5, 0.1, 0.9)))


def quantile(ordered: Sequence[float], part: float) -> float:
    """Of ascending values; `part` between 0 and 1."""
    position = part * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive values, at least one."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms))
