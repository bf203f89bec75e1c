"""The picture of `plan check`: what was predicted over what was measured, a panel per measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sglang_ascend_moe.launch.bench.plot import FAINT, QUIET, WIDTH, picture
from sglang_ascend_moe.launch.plan.prediction_check import GREATEST_ERROR, MEASURES, Compared, Measure, verdict
from sglang_ascend_moe.launch.plan.schedule_plot import SCHEDULE_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TICKS = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
MARGIN = 1.3
"""Of an axis, times the least and the greatest value."""


def draw_predictions(compared: Sequence[Compared], path: Path) -> None:
    """Writes the picture to `path`; its suffix says in which format."""
    with picture(path, "check") as pyplot:
        figure, panels = pyplot.subplots(1, len(MEASURES), figsize=(WIDTH, 4.1))
        figure.subplots_adjust(left=0.085, right=0.98, top=0.76, bottom=0.13, wspace=0.28)
        for axes, measure in zip(panels, MEASURES, strict=True):
            _dots(axes, measure, compared)
        panels[0].set_ylabel("predicted")
        panels[0].legend(frameon=False, loc="upper left", handletextpad=0.2)
        worst = max(verdict(measure.pairs(compared)).median_error for measure in MEASURES)
        figure.text(
            0.02, 0.94, f"{len(compared)} configurations, median errors of at most {worst:.0%}", fontsize=12,
            fontweight="bold", va="center",
        )  # fmt: skip
        figure.text(
            0.02, 0.87, f"on one host; on the line a prediction is right, in the band within {GREATEST_ERROR:.0%}",
            fontsize=9.5, color=QUIET, va="center",
        )  # fmt: skip


def _dots(axes: Axes, measure: Measure, compared: Sequence[Compared]) -> None:
    values = [value for pair in measure.pairs(compared) for value in pair]
    ends = [min(values) / MARGIN, max(values) * MARGIN]
    axes.fill_between(
        ends, [end * (1 - GREATEST_ERROR) for end in ends], [end * (1 + GREATEST_ERROR) for end in ends],
        color="#eef3ee", linewidth=0,
    )  # fmt: skip
    axes.plot(ends, ends, color=FAINT, linewidth=0.8)
    for schedule, colour in SCHEDULE_COLOURS.items():
        pairs = measure.pairs([one for one in compared if one.schedule == schedule])
        axes.scatter(
            [measured for _, measured in pairs], [predicted for predicted, _ in pairs], s=26, linewidth=1.2,
            edgecolors=colour, facecolors="none", label=schedule,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, xlabel="measured")
    ticks = [tick for tick in TICKS if ends[0] <= tick <= ends[1]]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, labels=[f"{tick:,}" for tick in ticks])
        axis.set_ticks([], minor=True)
    axes.set_title(measure.title, loc="left", fontsize=10)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
