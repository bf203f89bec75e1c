"""The steps of all ranks of a session on one clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.trace_file import FILE_SUFFIX, Trace, TraceEvent, TraceHeader, read_trace
from sglang_ascend_moe.native.codes import Kind, Step


class Span(NamedTuple):
    """A step of a rank, in nanoseconds of the timeline.

    kind: None where it is not known. layer: of the model; None where nobody said. waited_for: the rank that came last,
    and waited_ns for how long others held this one up; None if nobody did. has_ended: False for a step in which the
    rank still was when the file was read, or when it ended; it is drawn up to the end of the timeline.
    """

    rank: int
    step: Step
    epoch: int
    kind: Kind | None
    layer: int | None
    begin_ns: int
    end_ns: int
    waited_ns: int
    waited_for: int | None
    rows: int
    bytes: int
    has_ended: bool


class Timeline(NamedTuple):
    """What the ranks of one session did, by rank. spans: as they began. lost: events that were overwritten.

    one_clock: whether all its ranks ran on one machine; else their times are as far apart as the machines' clocks.
    """

    headers: dict[int, TraceHeader]
    spans: dict[int, list[Span]]
    lost: dict[int, int]
    one_clock: bool

    @property
    def header(self) -> TraceHeader:
        """That of any rank."""
        return next(iter(self.headers.values()))

    @property
    def missing(self) -> list[int]:
        """Ranks that left no file."""
        return sorted(set(range(self.header.parameters.ranks)) - self.spans.keys())

    @property
    def begin_ns(self) -> int:
        return min((spans[0].begin_ns for spans in self.spans.values() if spans), default=0)

    @property
    def end_ns(self) -> int:
        return max((span.end_ns for spans in self.spans.values() for span in spans), default=0)


def read_timelines(folder: Path) -> list[Timeline]:
    """Those of all sessions with files in `folder`, by stage and begin.

    Raises `ProtocolMismatch` if there is none, and for a file that is no trace of this release.
    """
    sessions: dict[bytes, list[Trace]] = {}
    for path in sorted(folder.glob(f"*{FILE_SUFFIX}")):
        trace = read_trace(path)
        sessions.setdefault(trace.header.session, []).append(trace)
    if not sessions:
        raise ProtocolMismatch(f"{folder} holds no traces; ranks write them with --ascend-moe-trace {folder}")
    shifts = _shifts(trace.header for traces in sessions.values() for trace in traces)
    timelines = [_timeline(traces, shifts) for traces in sessions.values()]
    return sorted(timelines, key=lambda one: (one.header.stage or 0, one.begin_ns))


def _shifts(headers: Iterable[TraceHeader]) -> dict[bytes, int]:
    """Machine -> nanoseconds from the clock that starts with it to that of the day; none where there is one machine."""
    shifts: dict[bytes, int] = {}
    for header in headers:
        # One for all its ranks, whose clock is the same.
        shifts.setdefault(header.machine.identity, header.realtime_ns - header.monotonic_ns)
    return shifts if len(shifts) > 1 else dict.fromkeys(shifts, 0)


def _timeline(traces: Sequence[Trace], shift_of_machine: dict[bytes, int]) -> Timeline:
    # The ranks of an exchange run the same layer in the same epoch.
    layers = {event.epoch: event.layer for trace in traces for event in trace.events if event.layer >= 0}
    # A plan has an epoch of its own, before those of its rounds.
    plans = {event.epoch for trace in traces for event in trace.events if event.kind == Kind.PLAN}
    layers |= {epoch: layers[epoch + 1] for epoch in plans if epoch + 1 in layers}
    machines = {trace.header.rank: trace.header.machine.identity for trace in traces}
    shifts = {rank: shift_of_machine[machine] for rank, machine in machines.items()}
    end_ns = max(
        (max(event.begin_ns, event.end_ns) + shifts[trace.header.rank] for trace in traces for event in trace.events),
        default=0,
    )
    spans = {trace.header.rank: _spans(trace, layers, shifts[trace.header.rank], end_ns) for trace in traces}
    lost = {trace.header.rank: trace.lost for trace in traces}
    headers = {trace.header.rank: trace.header for trace in traces}
    return Timeline(headers, spans, lost, one_clock=len(set(machines.values())) == 1)


def _spans(trace: Trace, layers: dict[int, int], shift_ns: int, end_ns: int) -> list[Span]:
    steps = [event for event in trace.events if event.step != Step.NONE]
    kinds = {event.epoch: event.kind for event in steps if event.kind}
    placed = {event.epoch: event.rows for event in steps if event.step == Step.PLACE}
    combined: dict[int, int] = {}
    for event in steps:
        if event.step == Step.DONE:
            combined.setdefault(event.epoch, event.begin_ns)
    out_row_bytes = trace.header.parameters.out_row_bytes

    def span(event: TraceEvent) -> Span:
        ended_ns = combined.get(event.epoch, 0) if event.step == Step.EXPERTS else event.end_ns
        rows, moved = event.rows, event.bytes
        if event.step == Step.REDUCE:
            # As many as were placed.
            rows = placed.get(event.epoch, 0)
            moved = rows * out_row_bytes
        kind = kinds.get(event.epoch)
        return Span(
            rank=trace.header.rank, step=Step(event.step), epoch=event.epoch,
            kind=None if kind is None else Kind(kind), layer=layers.get(event.epoch),
            begin_ns=event.begin_ns + shift_ns, end_ns=ended_ns + shift_ns if ended_ns else end_ns,
            waited_ns=event.waited_ns, waited_for=event.waited_for if event.waited_for >= 0 else None,
            rows=rows, bytes=moved, has_ended=bool(ended_ns),
        )  # fmt: skip

    return sorted(map(span, steps), key=lambda one: one.begin_ns)
