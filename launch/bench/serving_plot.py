"""The picture of `ascend-moe bench serving`: a panel per measure, a bar per variant, a dot per round."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sglang_ascend_moe.launch.bench.plot import COLOURS, FAINT, INK, PAPER, QUIET, WIDTH
from sglang_ascend_moe.launch.bench.serving_records import MEASURES, Measure, ServingRecord, summary, variants_of
from sglang_ascend_moe.launch.bench.tables import OURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIRST_TOKEN, LATER_TOKENS, THROUGHPUT, TOKENS_PER_STEP = MEASURES[0], MEASURES[2], MEASURES[4], MEASURES[5]
SHOWN_MEASURES = (FIRST_TOKEN, LATER_TOKENS, THROUGHPUT)
"""What the picture shows."""
SERVING_COLOURS = {
    **COLOURS, "stock": COLOURS["memcpy"], "live": COLOURS["relay-free"], "drafts": COLOURS["relay-direct"],
}  # fmt: skip


def draw_serving(records: list[ServingRecord], path: Path) -> None:
    """Writes the picture to `path`; its suffix says in which format."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 10,
            "svg.hashsalt": "bench",
            "text.color": INK,
            "svg.fonttype": "path",
        }
    )
    height = 1.65 + 0.42 * len(variants_of(records))
    figure, panels = pyplot.subplots(1, len(SHOWN_MEASURES), figsize=(WIDTH, height), sharey=True)
    figure.subplots_adjust(left=0.105, right=0.98, top=1 - 1.4 / height, bottom=0.15 / height, wspace=0.1)
    for axes, measure in zip(panels, SHOWN_MEASURES, strict=True):
        _bars(axes, records, measure)
    panels[0].invert_yaxis()
    one = records[0]
    figure.text(0.02, 1 - 0.35 / height, serving_headline(records), fontsize=13, fontweight="bold", va="center")
    figure.text(
        0.02, 1 - 0.7 / height, f"{one.requests} requests of {one.input_tokens} + {one.output_tokens} tokens,"
        f" {one.concurrency} at a time, on one host; bar: median of the rounds, dot: a round",
        color=QUIET, fontsize=9.5, va="center",
    )  # fmt: skip
    metadata = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)
    figure.savefig(path, dpi=160, facecolor=PAPER, metadata=metadata)
    pyplot.close(figure)


def serving_headline(records: list[ServingRecord]) -> str:
    """What the picture says beside stock SGLang, where both were measured."""
    if not {OURS, "stock"} <= set(variants_of(records)):
        return "Serving on one host"
    first, later = (
        summary(records, OURS, measure).median / summary(records, "stock", measure).median
        for measure in (FIRST_TOKEN, LATER_TOKENS)
    )
    return f"Beside stock SGLang on one rank: {first:.2f} of its time to the first token, {later:.2f} to each later one"


def _bars(axes: Axes, records: list[ServingRecord], measure: Measure) -> None:
    names = variants_of(records)
    middles = [summary(records, name, measure).median for name in names]
    axes.barh(names, middles, color=[SERVING_COLOURS[name] for name in names], height=0.6, alpha=0.85)
    for place, (name, middle) in enumerate(zip(names, middles, strict=True)):
        rounds = [measure.of(record) for record in records if record.variant == name]
        axes.scatter(rounds, [name] * len(rounds), s=9, color=INK, zorder=3)
        axes.text(0.98 * max(middles) * 1.3, place, f"{middle:,.1f}", ha="right", va="center", fontsize=9.5)
    axes.set_xlim(0, max(middles) * 1.3)
    better = "lower" if measure.less_is_better else "higher"
    axes.set_title(f"{measure.title} ({better} is better)", loc="left", fontsize=9, pad=6)
    axes.set_xticks([])
    axes.tick_params(length=0, labelcolor=INK)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
        axes.spines[side].set_color(FAINT)
