"""The picture of a run: times over tokens, and how much longer everything else takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.records import OPS, Op, Record, cases_of, find, variants_of
from sglang_ascend_moe.launch.bench.tables import BOUND, OURS, ratios

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, QUIET, FAINT, PAPER = "#1d2733", "#55606c", "#8a94a0", "#ffffff"
COLOURS = {
    "relay-free": "#d1495b",
    "relay": "#30638e",
    "relay-direct": "#4a86b5",
    "collective": "#8d6a9f",
    "collective-native": "#a17fb3",
    "mpi": "#5b8e7d",
    "memcpy": "#828a94",
    "quantise-memcpy": "#a98c52",
}
LABEL_GAP = 0.085
"""Least distance of two labels at the right of a panel, of its height."""
LONGEST_BAR = 8.0
"""The longest bar, in times of relay-free: longer ones are broken here, or they would leave no room for the others."""
WIDTH = 10.0
"""Of every picture, in inches: a page shows it 800 pixels wide, and letters of 10 points then have 11 pixels."""
PANELS = 4
"""Most panels beside each other: others would be too small to read."""
LONG_US = 100_000
"""Beyond this times are shown in milliseconds."""
HEADLINES = {"relay": "through a relay buffer", "mpi": "over MPI", "collective": "over gloo"}

Panel = tuple[int, str]
"""hidden and dtype"""


@contextmanager
def picture(path: Path, salt: str) -> Iterator[ModuleType]:
    """matplotlib.pyplot, and when it is left, the figure made with it in `path`, whose suffix says in which format.

    Pictures have one style, whatever else of this process has set, and the same bytes each time; salt: what tells the
    ids of one kind of picture from those of another.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    with pyplot.rc_context():
        matplotlib.rcdefaults()
        pyplot.rcParams.update(
            {
                "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 10, "svg.hashsalt": salt,
                "svg.fonttype": "path", "axes.edgecolor": FAINT, "text.color": INK, "axes.labelcolor": INK,
                "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
            }
        )  # fmt: skip
        yield pyplot
        figure = pyplot.gcf()
        metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
        figure.savefig(path, dpi=160, facecolor=PAPER, metadata=metadata)
        pyplot.close(figure)


def draw(records: list[Record], path: Path) -> None:
    """Writes the picture to `path`; its suffix says in which format."""
    with picture(path, "bench"):
        _figure(records)


def _figure(records: list[Record]) -> Figure:
    from matplotlib import pyplot

    panels = list(dict.fromkeys((case.hidden, case.dtype) for case in cases_of(records)))[:PANELS]
    columns = len(panels)
    # In inches.
    left, right, bar_height = 0.95, 1.45, 0.21
    below = 0.75 + bar_height * len(variants_of(records))
    height = below + 6.35
    figure = pyplot.figure(figsize=(WIDTH, height))
    lines = figure.add_gridspec(
        2, columns, left=left / WIDTH, right=1 - right / WIDTH, top=1 - 1.5 / height, bottom=(below + 0.55) / height,
        hspace=0.25, wspace=0.12,
    )  # fmt: skip
    drawn = drawn_over_tokens(records)
    thousands = max(record.median_us or 0 for record in records if record.variant in drawn) > LONG_US
    scale = 1000 if thousands else 1
    for row, op in enumerate(OPS):
        first: Axes | None = None
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(lines[row, column], sharey=first)
            first = first or axes
            ends = _times(axes, [record for record in records if record.variant in drawn], op, panel)
            axes.tick_params(labelleft=column == 0)
            if row == 0:
                axes.set_title(f"hidden {panel[0]:,}, {panel[1]}", loc="left", fontsize=10, pad=9)
            else:
                axes.set_xlabel("tokens per rank", fontsize=9, color=QUIET)
            if column == columns - 1:
                _label_ends(axes, ends)
        if first is not None:
            first.yaxis.set_major_formatter(lambda value, _: f"{value / scale:,.6g}")
            first.set_ylabel(f"{op}, {'ms' if thousands else 'µs'}", fontsize=11, fontweight="bold", labelpad=6)
    name_width = 1.5
    bars = figure.add_gridspec(
        1, 2, left=name_width / WIDTH, right=1 - 0.2 / WIDTH, top=(below - 0.45) / height, bottom=0.25 / height,
        wspace=name_width / ((WIDTH - 2 * name_width - 0.2) / 2),
    )  # fmt: skip
    for column, op in enumerate(OPS):
        _bars(figure.add_subplot(bars[column]), records, op)
    figure.text(0.2 / WIDTH, 1 - 0.4 / height, headline(records), fontsize=13, fontweight="bold", va="center")
    figure.text(
        0.2 / WIDTH, 1 - 0.86 / height, subtitle(records), fontsize=9.5, color=QUIET, va="center", linespacing=1.5
    )
    return figure


def drawn_over_tokens(records: list[Record]) -> list[str]:
    """The variants that have a line: those without a broken bar; the lines of others would push these together."""
    broken = {mean.variant for mean in ratios(records) if mean.ratio > LONGEST_BAR}
    return [name for name in variants_of(records) if name not in broken]


def bar_lengths(records: list[Record], op: Op) -> dict[str, float]:
    """Variant -> how long its bar is, in times of relay-free; none is longer than `LONGEST_BAR`."""
    means = {mean.variant: mean.ratio for mean in ratios(records) if mean.op == op} | {OURS: 1.0}
    return {name: min(means[name], LONGEST_BAR) for name in variants_of(records) if name in means}


def headline(records: list[Record]) -> str:
    """What the picture says, in numbers, where it says something: against the relay buffer, or what else there is."""
    found = {(mean.op, mean.variant): mean.ratio for mean in ratios(records)}
    for variant, words in HEADLINES.items():
        dispatch, combine = (found.get((op, variant), 0.0) for op in OPS)
        if min(dispatch, combine) > 1:
            return f"Relay-free: dispatch {dispatch:.1f} times, combine {combine:.1f} times as fast as {words}"
    return "Dispatch and combine, without relay and otherwise"


def subtitle(records: list[Record]) -> str:
    """What was measured and what is left out, in two lines."""
    cases = cases_of(records)
    one = cases[0]
    routings = ", ".join(dict.fromkeys(case.routing for case in cases))
    drawn = drawn_over_tokens(records)
    others = ", ".join(name for name in variants_of(records) if name not in drawn)
    return (
        f"{one.phase}, {one.ranks} ranks on one host, top {one.topk} of {one.experts} experts, {routings} routing;"
        " lower is better\nmedian time until the last rank has ended, shaded from the 10th to the 90th percentile"
        + (f"; lines without {others}" if others else "")
    )


def _times(axes: Axes, records: list[Record], op: Op, panel: Panel) -> dict[str, float]:
    """Draws a line over tokens for each variant; returns where each ends."""
    ends: dict[str, float] = {}
    cases = sorted((case for case in cases_of(records) if (case.hidden, case.dtype) == panel), key=lambda c: c.tokens)
    for variant in reversed(variants_of(records)):
        points = [(case, times) for case in cases if (times := _measured(records, case, op, variant)) is not None]
        if not points:
            continue
        tokens = [case.tokens for case, _ in points]
        medians = [times.median for _, times in points]
        axes.fill_between(
            tokens, [times.p10 for _, times in points], [times.p90 for _, times in points],
            color=COLOURS[variant], alpha=0.14, linewidth=0,
        )  # fmt: skip
        axes.plot(
            tokens, medians, linewidth=2.6 if variant == OURS else 1.5, marker="o",
            markersize=5 if variant == OURS else 3.2, linestyle=(0, (4, 2)) if variant == BOUND else "-",
            color=COLOURS[variant], zorder=3 if variant == OURS else 2,
        )  # fmt: skip
        ends[variant] = medians[-1]
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    tokens = [case.tokens for case in cases]
    axes.set_xticks(tokens, [f"{token:,}" for token in tokens])
    axes.minorticks_off()
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    return ends


def _label_ends(axes: Axes, ends: dict[str, float]) -> None:
    """Names beside the last points of the lines, moved apart where they would lie on each other."""
    axes.autoscale_view()
    places = {name: float(axes.transAxes.inverted().transform(axes.transData.transform((1, end)))[1])
              for name, end in ends.items()}  # fmt: skip
    floor = -LABEL_GAP
    for name in sorted(places, key=places.__getitem__):
        floor = max(places[name], floor + LABEL_GAP)
        places[name] = floor
    over = max(places.values(), default=0) - 1.02
    for name, place in places.items():
        axes.text(
            1.03, place - max(over, 0) * place, name, transform=axes.transAxes, va="center", fontsize=9.5,
            color=COLOURS[name], fontweight="bold" if name == OURS else "normal",
        )  # fmt: skip


def _bars(axes: Axes, records: list[Record], op: Op) -> None:
    """How many times as long as relay-free each variant takes; both operations have the same scale."""
    means = {mean.variant: mean.ratio for mean in ratios(records) if mean.op == op}
    lengths = bar_lengths(records, op)
    names = list(lengths)
    places = range(len(names))
    axes.barh(places, list(lengths.values()), color=[COLOURS[name] for name in names], height=0.66)
    for place, name in zip(places, names, strict=True):
        value = means.get(name, 1.0)
        axes.text(
            max(lengths[name], 1.0), place, f"  {value:.2f}" if value < 10 else f"  {value:.0f}", va="center",
            fontsize=9.5, fontweight="bold" if name == OURS else "normal",
        )  # fmt: skip
        if value > LONGEST_BAR:
            for gap in (0.86, 0.91):
                axes.plot(
                    [(gap - 0.012) * LONGEST_BAR, (gap + 0.012) * LONGEST_BAR], [place + 0.45, place - 0.45],
                    color=PAPER, linewidth=2.5,
                )  # fmt: skip
    axes.set_yticks(places, names)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name == OURS else "normal")
    axes.invert_yaxis()
    every_length = [length for either in OPS for length in bar_lengths(records, either).values()]
    axes.set_xlim(0, 1.16 * max(every_length, default=1.0))
    axes.axvline(1, color=COLOURS[OURS], linewidth=0.8, alpha=0.6, zorder=0)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{op}: time over relay-free, all cases", loc="left", fontsize=10, fontweight="bold", pad=6)


class _Times(NamedTuple):
    """In microseconds."""

    p10: float
    median: float
    p90: float


def _measured(records: list[Record], case: Case, op: Op, variant: str) -> _Times | None:
    record = find(records, case, op, variant)
    if record is None or record.p10_us is None or record.median_us is None or record.p90_us is None:
        return None
    return _Times(record.p10_us, record.median_us, record.p90_us)
