"""Draws docs/timeline.svg and docs/top.svg: what `ascend-moe trace` and `ascend-moe top` make of a real server.

python -m tests.launch.trace.pictures
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from sglang_ascend_moe.launch.bench.plot import COLOURS, INK, PAPER, QUIET, WIDTH
from sglang_ascend_moe.launch.doctor.live_server import ask
from sglang_ascend_moe.launch.servers.server_process import ServerProcess
from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes, write_checkpoint
from sglang_ascend_moe.launch.top.live_view import view
from sglang_ascend_moe.launch.top.rates import Look, rates_between
from sglang_ascend_moe.launch.trace.timeline import Span, Timeline, read_timelines
from sglang_ascend_moe.native.codes import Kind, Step
from tests.packaging.source_tree import ROOT
from tests.serving.clients import Traffic

TIMELINE, TOP = ROOT / "docs/timeline.svg", ROOT / "docs/top.svg"
SIZES = TinySizes(hidden=1024, experts=64, topk=8, layers=6)
LAYERS_SHOWN = 2
LOOK_SECONDS = 3.0
STEP_COLOURS = {
    Step.ANNOUNCE: COLOURS["memcpy"],
    Step.COUNTS: COLOURS["quantise-memcpy"],
    Step.PLACE: COLOURS["relay-free"],
    Step.ARRIVALS: COLOURS["quantise-memcpy"],
    Step.EXPERTS: COLOURS["relay-direct"],
    Step.DONE: COLOURS["quantise-memcpy"],
    Step.REDUCE: COLOURS["mpi"],
}
WAITS = (Step.COUNTS, Step.ARRIVALS, Step.DONE)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        traces = Path(folder, "traces")
        model = write_checkpoint(Path(folder, "model"), sizes=SIZES)
        arguments = ["--model-path", str(model), "--device", "cpu", "--tp-size", "2", "--ascend-moe"]
        arguments += ["--ascend-moe-trace", str(traces), "--max-running-requests", "8"]
        with ServerProcess(arguments, Path(folder, "server.log")) as server:
            server.wait_until_ready(600.0, lambda _progress: None)
            prompts = [list(range(1 + first, 65 + first)) for first in range(8)]
            with Traffic(server.url, prompts, 200, clients=4) as traffic:
                traffic.wait_for_answer()
                draw_top(server.url)
        (timeline,) = read_timelines(traces)
    draw_timeline(timeline)


def draw_top(url: str) -> None:
    before = Look(ask(url, None), time.monotonic())
    threading.Event().wait(LOOK_SECONDS)
    rates = rates_between(before, Look(ask(url, None), time.monotonic()))
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=84, file=nowhere, force_terminal=True)
        console.print(view("http://localhost:30000", rates))
    console.save_svg(str(TOP), title="ascend-moe top", theme=DIMMED_MONOKAI, unique_id="top")


def draw_timeline(timeline: Timeline) -> None:
    """The first layers of a decode step, on every rank."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    steps = _steps(timeline)
    # As long as half of all are at least.
    shown = sorted(steps, key=lambda those: those[-1].end_ns - those[0].begin_ns)[len(steps) // 2]
    begin = min(span.begin_ns for span in shown)
    pyplot.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "svg.hashsalt": "bench", "text.color": INK})
    figure, axes = pyplot.subplots(figsize=(WIDTH, 2.6))
    for span in shown:
        place = (span.rank - 0.3 + 0.32 * (span.step == Step.EXPERTS), 0.28)
        times = [((span.begin_ns - begin) / 1e3, (span.end_ns - span.begin_ns) / 1e3)]
        axes.broken_barh(times, place, facecolors=STEP_COLOURS.get(span.step, QUIET))
        if span.step == Step.EXPERTS:
            middle, said = times[0][0] + times[0][1] / 2, f"layer {span.layer}: {span.rows} rows"
            axes.text(middle, span.rank + 0.16, said, ha="center", va="center", fontsize=8)
    axes.set_yticks(range(len(timeline.spans)), [f"rank {rank}" for rank in timeline.spans])
    axes.invert_yaxis()
    axes.set_xlabel("µs")
    named = {step.name.lower(): colour for step, colour in STEP_COLOURS.items() if step not in WAITS}
    named["waits: counts, arrivals, done"] = STEP_COLOURS[WAITS[0]]
    patches = [Patch(color=colour, label=name) for name, colour in named.items()]
    figure.legend(handles=patches, loc="upper center", ncols=len(patches), frameon=False, fontsize=9)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.subplots_adjust(left=0.07, right=0.99, top=0.86, bottom=0.2)
    figure.savefig(TIMELINE, facecolor=PAPER, metadata={"Date": None})
    pyplot.close(figure)


def _steps(timeline: Timeline) -> list[list[Span]]:
    """The calls of the first layers in each decode step that is there, of all ranks, as they began."""
    spans = [span for those in timeline.spans.values() for span in those if span.kind == Kind.DECODE]
    by_epoch: dict[int, list[Span]] = {}
    for span in sorted(spans, key=lambda span: span.begin_ns):
        by_epoch.setdefault(span.epoch, []).append(span)
    firsts = [epoch for epoch, those in by_epoch.items() if those[0].layer == 0]
    return [
        [span for epoch in range(first, first + LAYERS_SHOWN) for span in by_epoch[epoch]]
        for first in firsts
        if first + LAYERS_SHOWN - 1 in by_epoch
    ]


if __name__ == "__main__":
    main()
