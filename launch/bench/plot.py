"""The picture of a run: times over tokens, and how much longer everything else takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
    "relay-direct": "#6a9bc3",
    "collective": "#8d6a9f",
    "collective-native": "#b79ac4",
    "mpi": "#5b8e7d",
    "memcpy": "#a3a9b1",
    "quantise-memcpy": "#c2a878",
}
LABEL_GAP = 0.075
"""Least distance of two labels at the right of a panel, of its height."""
PANELS = 4
"""Most panels beside each other: others would be too small to read."""
LONG_US = 100_000
"""Beyond this times are shown in milliseconds."""
HEADLINES = {"relay": "through a relay buffer", "mpi": "over MPI", "collective": "over gloo"}

Panel = tuple[int, str]
"""hidden and dtype"""


def draw(records: list[Record], path: Path) -> None:
    """Writes the picture to `path`; its suffix says in which format."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "svg.hashsalt": "bench",
            "svg.fonttype": "path", "axes.edgecolor": FAINT, "text.color": INK, "axes.labelcolor": INK,
            "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
        }
    )  # fmt: skip
    figure = _figure(records)
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    figure.savefig(path, dpi=160, facecolor=PAPER, metadata=metadata)
    pyplot.close(figure)


def _figure(records: list[Record]) -> Figure:
    from matplotlib import pyplot

    panels = list(dict.fromkeys((case.hidden, case.dtype) for case in cases_of(records)))[:PANELS]
    columns = len(panels)
    # In inches.
    width, height, left, right = max(9.6, 2.6 + 2.7 * columns), 9.4, 1.15, 1.45
    figure = pyplot.figure(figsize=(width, height))
    lines = figure.add_gridspec(
        2, columns, left=left / width, right=1 - right / width, top=1 - 1.5 / height, bottom=3.0 / height,
        hspace=0.36, wspace=0.12,
    )  # fmt: skip
    thousands = max(record.median_us or 0 for record in records) > LONG_US
    for row, op in enumerate(OPS):
        first: Axes | None = None
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(lines[row, column], sharey=first)
            first = first or axes
            _times(axes, records, op, panel, last=column == columns - 1)
            axes.tick_params(labelleft=column == 0)
            if row == 0:
                axes.set_title(f"hidden {panel[0]:,}, {panel[1]}", loc="left", fontsize=10, pad=9)
        if first is not None:
            scale = 1000 if thousands else 1
            first.yaxis.set_major_formatter(lambda value, _, scale=scale: f"{value / scale:,.6g}")
            first.set_ylabel(f"{op}, {'ms' if thousands else 'µs'}", fontsize=11, fontweight="bold", labelpad=8)
    bars = figure.add_gridspec(
        1, 2, left=(left + 0.55) / width, right=1 - 0.3 / width, top=2.05 / height, bottom=0.3 / height,
        wspace=1.6 / (width / 2 - 2.0),
    )  # fmt: skip
    for column, op in enumerate(OPS):
        _bars(figure.add_subplot(bars[column]), records, op)
    figure.text(
        0.3 / width, 1 - 0.4 / height, headline(records), fontsize=min(15, 1.32 * width), fontweight="bold", va="center"
    )
    figure.text(
        0.3 / width, 1 - 0.86 / height, subtitle(records), fontsize=9, color=QUIET, va="center", linespacing=1.5
    )
    return figure


def headline(records: list[Record]) -> str:
    """What the picture says, in numbers, where it says something: against the relay buffer, or what else there is."""
    found = {(mean.op, mean.variant): mean.ratio for mean in ratios(records)}
    for variant, words in HEADLINES.items():
        dispatch, combine = (found.get((op, variant), 0.0) for op in OPS)
        if min(dispatch, combine) > 1:
            return f"Relay-free: dispatch {dispatch:.1f} times, combine {combine:.1f} times as fast as {words}"
    return "Dispatch and combine, without relay and otherwise"


def subtitle(records: list[Record]) -> str:
    """What was measured, in two lines."""
    cases = cases_of(records)
    one = cases[0]
    routings = ", ".join(dict.fromkeys(case.routing for case in cases))
    return (
        f"{one.phase}, {one.ranks} ranks on one host, top {one.topk} of {one.experts} experts, {routings} routing;"
        " lower is better\nmedian time until the last rank has ended, shaded from the 10th to the 90th percentile"
    )


def _times(axes: Axes, records: list[Record], op: Op, panel: Panel, *, last: bool) -> None:
    """Lines over tokens, in the last panel each with its name at its right end."""
    cases = sorted((case for case in cases_of(records) if (case.hidden, case.dtype) == panel), key=lambda c: c.tokens)
    ends: dict[str, float] = {}
    for variant in reversed(variants_of(records)):
        points = [(case, record) for case in cases if (record := _measured(records, case, op, variant)) is not None]
        if not points:
            continue
        tokens = [case.tokens for case, _ in points]
        medians = [record.median_us for _, record in points]
        style = {"color": COLOURS[variant], "zorder": 3 if variant == OURS else 2}
        axes.fill_between(
            tokens, [record.p10_us for _, record in points], [record.p90_us for _, record in points],
            color=COLOURS[variant], alpha=0.14, linewidth=0,
        )  # fmt: skip
        axes.plot(
            tokens, medians, linewidth=2.6 if variant == OURS else 1.5, marker="o",
            markersize=5 if variant == OURS else 3.2, linestyle=(0, (4, 2)) if variant == BOUND else "-", **style,
        )  # fmt: skip
        ends[variant] = medians[-1]
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    tokens = [case.tokens for case in cases]
    axes.set_xticks(tokens, [f"{token:,}" for token in tokens])
    axes.minorticks_off()
    axes.set_xlabel("tokens per rank", fontsize=8, color=FAINT)
    axes.grid(axis="y", color="#e6e9ed", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    if last:
        axes.autoscale_view()
        _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: dict[str, float]) -> None:
    """Names beside the last points, moved apart where they would lie on each other."""
    places = {name: float(axes.transAxes.inverted().transform(axes.transData.transform((1, end)))[1])
              for name, end in ends.items()}  # fmt: skip
    floor = -LABEL_GAP
    for name in sorted(places, key=places.__getitem__):
        floor = max(places[name], floor + LABEL_GAP)
        places[name] = floor
    over = max(places.values(), default=0) - 1.02
    for name, place in places.items():
        axes.text(
            1.03, place - max(over, 0) * place, name, transform=axes.transAxes, va="center", fontsize=8.5,
            color=COLOURS[name], fontweight="bold" if name == OURS else "normal",
        )  # fmt: skip


def _bars(axes: Axes, records: list[Record], op: Op) -> None:
    """How many times as long as relay-free each variant takes."""
    means = {mean.variant: mean.ratio for mean in ratios(records) if mean.op == op}
    names = [name for name in variants_of(records) if name in means or name == OURS]
    values = [means.get(name, 1.0) for name in names]
    places = range(len(names))
    axes.barh(places, values, color=[COLOURS[name] for name in names], height=0.66)
    for place, name, value in zip(places, names, values, strict=True):
        axes.text(
            value, place, f"  {value:.2f}" if value < 10 else f"  {value:.0f}", va="center", fontsize=8.5,
            fontweight="bold" if name == OURS else "normal",
        )  # fmt: skip
    axes.set_yticks(places, names)
    for label, name in zip(axes.get_yticklabels(), names, strict=True):
        label.set_color(COLOURS[name])
        label.set_fontweight("bold" if name == OURS else "normal")
    axes.invert_yaxis()
    axes.set_xlim(0, max(values) * 1.14)
    axes.axvline(1, color=COLOURS[OURS], linewidth=0.8, alpha=0.6, zorder=0)
    axes.set_xticks([])
    axes.tick_params(length=0)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.set_title(f"{op}: time over relay-free, all cases", loc="left", fontsize=10, pad=6)


def _measured(records: list[Record], case: Case, op: Op, variant: str) -> Record | None:
    record = find(records, case, op, variant)
    return None if record is None or record.median_us is None else record
