"""The picture of `plan schedule`: the feasible region of both schedules, and the best rate of each deployment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_ascend_moe.launch.bench.plot import COLOURS, QUIET, WIDTH, picture
from sglang_ascend_moe.launch.plan.feasible_rates import Choice, RatePoint
from sglang_ascend_moe.launch.plan.machine_times import Schedule
from sglang_ascend_moe.launch.plan.schedule_text import difference, servers_in_words
from sglang_ascend_moe.launch.plan.topologies import Question

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEDULE_COLOURS = {"relay-free": COLOURS["relay-free"], "buffer-centric": COLOURS["relay"]}
BARS = 8
"""Deployments that have a bar, the best of either schedule."""
BEYOND_LIMITS = 2.0
"""The picture ends at so many times the limits; what lies further is left out."""


def draw_schedules(question: Question, found: Mapping[Schedule, Sequence[Choice]], path: Path) -> None:
    """Writes the picture to `path`; its suffix says in which format."""
    with picture(path, "plan") as pyplot:
        figure, (region, bars) = pyplot.subplots(
            2, 1, figsize=(WIDTH, 8.6), height_ratios=(4.2, 3.4), gridspec_kw={"hspace": 0.42}
        )
        figure.subplots_adjust(left=0.3, right=0.97, top=0.86, bottom=0.06)
        _region(region, question, found)
        _bars(bars, found)
        figure.text(0.02, 0.965, difference(found).capitalize(), fontsize=10.5, fontweight="bold", va="center")
        figure.text(
            0.02, 0.925,
            f"{question.work.name} in {question.weights}, {question.npus} NPUs ({question.machine.name}),"
            f" {question.input_tokens:,} tokens in, {question.output_tokens:,} out; modelled, not measured",
            fontsize=9.5, color=QUIET, va="center",
        )  # fmt: skip


def shown_points(question: Question, every: Sequence[Choice]) -> list[RatePoint]:
    """What was simulated and is not far beyond the limits."""
    return [
        point
        for choice in every
        for point in choice.points
        if point.ttft_ms <= BEYOND_LIMITS * question.ttft * 1e3 and point.tpot_ms <= BEYOND_LIMITS * question.tpot * 1e3
    ]


def _region(axes: Axes, question: Question, found: Mapping[Schedule, Sequence[Choice]]) -> None:
    """TTFT over TPOT: a dot for each rate of each deployment, larger for higher rates, filled where it is feasible."""
    ttft, tpot = question.ttft * 1e3, question.tpot * 1e3
    axes.axvspan(0, tpot, ymax=1 / BEYOND_LIMITS, color="#eef3ee", zorder=0)
    axes.text(0.01 * tpot, 0.97 * ttft, "feasible", va="top", fontsize=9.5, color=QUIET)
    highest = max((point.rate for every in found.values() for point in shown_points(question, every)), default=1.0)
    for schedule, every in found.items():
        points = shown_points(question, every)
        inside = [point.ttft_ms <= ttft and point.tpot_ms <= tpot for point in points]
        colour = SCHEDULE_COLOURS[schedule]
        axes.scatter(
            [point.tpot_ms for point in points], [point.ttft_ms for point in points],
            s=[12 + 90 * point.rate / highest for point in points], linewidth=1.2, edgecolors=colour,
            facecolors=[colour if feasible else "none" for feasible in inside],
        )  # fmt: skip
        axes.scatter([], [], s=60, color=colour, label=schedule)
    axes.set_xlim(0, BEYOND_LIMITS * tpot)
    axes.set_ylim(0, BEYOND_LIMITS * ttft)
    axes.set_xlabel("TPOT, ms")
    axes.set_ylabel("TTFT, ms")
    axes.set_title("every rate of every deployment; larger: more requests per second", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="upper right")
    _quiet(axes)


def _bars(axes: Axes, found: Mapping[Schedule, Sequence[Choice]]) -> None:
    """The best feasible rate of each deployment, of both schedules."""
    rates: dict[str, dict[str, float]] = {}
    for schedule, every in found.items():
        for choice in every:
            if choice.feasible:
                of_servers = rates.setdefault(servers_in_words(choice), {})
                of_servers[schedule] = max(choice.best.rate, of_servers.get(schedule, 0.0))
    best = sorted(rates, key=lambda words: -max(rates[words].values()))[:BARS]
    for place, words in enumerate(best):
        for number, schedule in enumerate(found):
            rate = rates[words].get(schedule)
            at = place + 0.4 * number - 0.2
            if rate is None:
                axes.text(0, at, " none", va="center", fontsize=8.5, color=QUIET)
                continue
            axes.barh(at, rate, height=0.36, color=SCHEDULE_COLOURS[schedule])
            axes.text(rate, at, f" {rate:.2f}", va="center", fontsize=8.5)
    axes.set_yticks(range(len(best)), best)
    axes.invert_yaxis()
    axes.set_title("requests/s within the limits, by servers x ranks (attention groups)", loc="left", fontsize=10)
    _quiet(axes)


def _quiet(axes: Axes) -> None:
    axes.tick_params(length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
