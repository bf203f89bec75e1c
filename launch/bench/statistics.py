"""From nanoseconds of every rank and iteration to a median and its spread."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Spread(NamedTuple):
    """Microseconds."""

    median: float
    p10: float
    p90: float


def slowest_rank(times: Sequence[Sequence[int]]) -> list[int]:
    """The time of each iteration: that of its slowest rank. `times` is [ranks][iterations]."""
    return [max(iteration) for iteration in zip(*times, strict=True)]


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
