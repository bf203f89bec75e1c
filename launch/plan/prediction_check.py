"""Predicted against measured: errors of each measure, and whether the order of configurations is right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from statistics import median
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.launch.plan.machine_times import Schedule

MEDIAN_ERROR, GREATEST_ERROR, LEAST_TAU = 0.15, 0.40, 0.8
"""Bounds of a model that is right: errors as parts of what was measured, and Kendall's tau."""


class Compared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One configuration: medians in ms, and tokens per second, first predicted, then measured. At a given rate of
    requests tokens per second follow from it, and nothing is predicted."""

    name: str
    schedule: Schedule
    ttft_ms: tuple[float, float]
    tpot_ms: tuple[float, float]
    output_tokens_per_s: tuple[float, float] | None


class Measure(NamedTuple):
    title: str
    of: Callable[[Compared], tuple[float, float] | None]

    def pairs(self, compared: Sequence[Compared]) -> list[tuple[float, float]]:
        """Of the configurations that have it."""
        return [pair for one in compared if (pair := self.of(one)) is not None]


MEASURES = (
    Measure("TTFT, ms", lambda one: one.ttft_ms),
    Measure("TPOT, ms", lambda one: one.tpot_ms),
    Measure("tokens/s", lambda one: one.output_tokens_per_s),
)


class Verdict(NamedTuple):
    """Of one measure over all configurations."""

    median_error: float
    greatest_error: float
    tau: float

    @property
    def is_good(self) -> bool:
        return self.median_error <= MEDIAN_ERROR and self.greatest_error <= GREATEST_ERROR and self.tau >= LEAST_TAU


def verdict(pairs: Sequence[tuple[float, float]]) -> Verdict:
    """pairs: predicted and measured, at least two."""
    errors = [abs(predicted / measured - 1) for predicted, measured in pairs]
    return Verdict(median(errors), max(errors), kendall_tau(pairs))


def kendall_tau(pairs: Sequence[tuple[float, float]]) -> float:
    """Of all pairs of configurations, those in the same order less the others (Kendall, Biometrika 30, 1938)."""
    signs = []
    for (predicted, measured), (other_predicted, other_measured) in combinations(pairs, 2):
        product = (predicted - other_predicted) * (measured - other_measured)
        signs.append((product > 0) - (product < 0))
    return sum(signs) / len(signs)


def comparison_table(compared: Sequence[Compared]) -> str:
    width = max(len(one.name) for one in compared)
    lines = [f"{'predicted / measured':<{width}}" + "".join(f"{measure.title:>22}" for measure in MEASURES)]
    for one in compared:
        cells = (measure.of(one) for measure in MEASURES)
        lines.append(f"{one.name:<{width}}" + "".join(f"{in_words(cell):>22}" for cell in cells))
    for measure in MEASURES:
        found = verdict(measure.pairs(compared))
        lines.append(
            f"{measure.title}: median error {found.median_error:.0%}, greatest {found.greatest_error:.0%},"
            f" Kendall's tau {found.tau:.2f}: {'good' if found.is_good else 'not good enough'}"
        )
    return "\n".join(lines)


def in_words(pair: tuple[float, float] | None) -> str:
    return "-" if pair is None else f"{pair[0]:,.1f} /{pair[1]:>10,.1f}"
