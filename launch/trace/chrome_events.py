"""Timelines as the trace events of Chrome, which Perfetto opens too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sglang_ascend_moe.exchange.control.trace_file import TraceHeader
from sglang_ascend_moe.launch.trace.timeline import Span, Timeline
from sglang_ascend_moe.native.codes import Step

TRACKS = 16
"""Numbers of threads that each session has of a rank: its exchange, and experts that run at the same time."""
RELEASED_BY = {
    Step.COUNTS: Step.ANNOUNCE, Step.ARRIVALS: Step.PLACE, Step.DONE: Step.DONE, Step.REJOIN: Step.REJOIN,
}  # fmt: skip
"""The step of the other rank that ends a wait: by its end, or by the begin of the same step."""


class _Process(NamedTuple):
    """A rank; several exchanges may be of one."""

    stage: int
    rank: int
    machine: bytes
    process: int

    @classmethod
    def of(cls, header: TraceHeader) -> _Process:
        return cls(header.stage or 0, header.rank, header.machine.identity, header.process)


def chrome_events(timelines: Sequence[Timeline]) -> Iterator[dict[str, Any]]:
    """A process for each rank, a thread for its exchange and one for its experts, and an arrow from each rank that
    others waited for."""
    origin = min((one.begin_ns for one in timelines if any(one.spans.values())), default=0)
    headers = [header for one in timelines for header in one.headers.values()]
    numbers = {process: number for number, process in enumerate(sorted({_Process.of(header) for header in headers}))}
    staged = any(header.stage for header in headers)
    for process, number in numbers.items():
        name = f"stage {process.stage} rank {process.rank}" if staged else f"rank {process.rank}"
        yield _named("process_name", number, 0, name=name)
        yield _named("process_sort_index", number, 0, sort_index=number)
    for session, timeline in enumerate(timelines):
        p, first = timeline.header.parameters, session * TRACKS
        of = f"of {p.num_experts} experts, rows of {p.hidden} {p.dtype}"
        places = {rank: numbers[_Process.of(header)] for rank, header in timeline.headers.items()}
        for rank, spans in timeline.spans.items():
            yield _named("thread_name", places[rank], first, name=f"exchange {of}")
            yield from (_complete(span, places[rank], first, origin) for span in spans if span.step != Step.EXPERTS)
            for thread, lane in enumerate(_lanes(span for span in spans if span.step == Step.EXPERTS), first + 1):
                yield _named("thread_name", places[rank], thread, name=f"experts {of}")
                yield from (_complete(span, places[rank], thread, origin) for span in lane)
        yield from _arrows(timeline, places, first, origin)


def _named(kind: str, process: int, thread: int, **told: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": told}


def _complete(span: Span, process: int, thread: int, origin: int) -> dict[str, Any]:
    told: dict[str, Any] = {"epoch": span.epoch}
    if span.layer is not None:
        told["layer"] = span.layer
    if span.bytes:
        told |= {"rows": span.rows, "bytes": span.bytes}
    if span.waited_for is not None:
        told |= {"waited_for": span.waited_for, "waited_us": span.waited_ns / 1e3}
    if not span.has_ended:
        told["has_ended"] = False
    return {
        "ph": "X", "name": span.step.name.lower(), "cat": span.kind.name.lower() if span.kind else "exchange",
        "pid": process, "tid": thread, "ts": (span.begin_ns - origin) / 1e3,
        "dur": (span.end_ns - span.begin_ns) / 1e3, "args": told,
    }  # fmt: skip


def _lanes(spans: Iterable[Span]) -> list[list[Span]]:
    """So that those of a lane do not overlap, as those of several slots may."""
    lanes: list[list[Span]] = []
    for span in spans:
        free = next((lane for lane in lanes if lane[-1].end_ns <= span.begin_ns), None)
        if free is None:
            lanes.append(free := [])
        free.append(span)
    return lanes


def _arrows(timeline: Timeline, places: dict[int, int], thread: int, origin: int) -> Iterator[dict[str, Any]]:
    all_spans = [span for spans in timeline.spans.values() for span in spans]
    # The first of a combine in two parts is the one that sends.
    begun = {(span.rank, span.step, span.epoch): span for span in reversed(all_spans)}
    session = timeline.header.session.hex()[:12]
    for span in all_spans:
        if span.waited_for is None or span.step not in RELEASED_BY:
            continue
        source = begun.get((span.waited_for, RELEASED_BY[span.step], span.epoch))
        if source is None:
            continue
        sent_ns = source.begin_ns if source.step == span.step else source.end_ns - 1
        arrow = {
            "name": "waited for", "cat": "wait", "id": f"{session}-{span.rank}-{span.epoch}-{span.step}", "tid": thread,
        }  # fmt: skip
        yield {"ph": "s", "pid": places[source.rank], "ts": (sent_ns - origin) / 1e3, **arrow}
        yield {"ph": "f", "bp": "e", "pid": places[span.rank], "ts": (span.end_ns - 1 - origin) / 1e3, **arrow}
