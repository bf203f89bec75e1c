"""What a timeline says: the slowest rank, the steps in which time goes, how uneven each layer is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sglang_ascend_moe.launch.trace.timeline import Span, Timeline
from sglang_ascend_moe.native.codes import Kind, Step


class LayerRows(NamedTuple):
    """What the experts of a layer received in the exchanges that all ranks have written down.

    layer: None where nobody said. rows: [ranks]. largest_rows: of the rank that received most, summed over exchanges.
    """

    layer: int | None
    exchanges: int
    rows: list[int]
    largest_rows: int

    @property
    def imbalance(self) -> float:
        """Rows of the busiest rank over the mean."""
        return self.largest_rows * len(self.rows) / sum(self.rows) if sum(self.rows) else 1.0


def waits_for(timeline: Timeline) -> dict[int, int]:
    """Nanoseconds that the other ranks waited together for each rank that came last."""
    waits = dict.fromkeys(range(timeline.header.parameters.ranks), 0)
    for spans in timeline.spans.values():
        for span in spans:
            if span.waited_for is not None:
                waits[span.waited_for] += span.waited_ns
    return waits


def time_of_steps(timeline: Timeline) -> dict[int, Counter[Step]]:
    """Nanoseconds of each step, by rank."""
    times: dict[int, Counter[Step]] = {}
    for rank, spans in timeline.spans.items():
        times[rank] = Counter()
        for span in spans:
            times[rank][span.step] += span.end_ns - span.begin_ns
    return times


def rows_of_layers(timeline: Timeline) -> list[LayerRows]:
    """Of every layer, in their order."""
    ranks = timeline.header.parameters.ranks
    received: dict[int, dict[int, int]] = defaultdict(dict)
    layers: dict[int, int | None] = {}
    for spans in timeline.spans.values():
        for span in spans:
            if span.step == Step.EXPERTS:
                received[span.epoch][span.rank] = span.rows
                layers[span.epoch] = span.layer
    found: dict[int | None, list[dict[int, int]]] = defaultdict(list)
    for epoch, rows in received.items():
        if len(rows) == ranks:
            found[layers[epoch]].append(rows)
    return [
        LayerRows(
            layer, len(those), [sum(rows[rank] for rows in those) for rank in range(ranks)],
            sum(max(rows.values()) for rows in those),
        )
        for layer, those in sorted(found.items(), key=lambda item: -1 if item[0] is None else item[0])
    ]  # fmt: skip


def summary(timeline: Timeline) -> str:
    """For people."""
    p, header = timeline.header.parameters, timeline.header
    of_stage = "" if header.stage is None else f" of pipeline stage {header.stage}"
    exchanges = _exchanges(span for spans in timeline.spans.values() for span in spans)
    span_s = (timeline.end_ns - timeline.begin_ns) / 1e9
    lines = [
        f"session {header.session.hex()[:12]}: {p.ranks} ranks{of_stage}, {p.num_experts} experts, rows of {p.hidden}"
        f" {p.dtype}; {exchanges:,} exchanges in {span_s:.3f} s"
    ]
    lines += [f"  rank {rank} left no file" for rank in timeline.missing]
    if lost := max(timeline.lost.values()):
        lines.append(f"  of earlier ones up to {lost:,} events of a rank were overwritten")
    if not timeline.one_clock:
        lines.append("  ranks ran on several machines: times of different ones are as far apart as their clocks")
    return "\n".join(
        [*lines, _slowest(timeline), *_steps(timeline), *_layers(rows_of_layers(timeline)), *_unfinished(timeline)]
    )


def _exchanges(spans: Iterable[Span]) -> int:
    """Of rows: a plan of rounds has an epoch of its own, and moves none."""
    return len({span.epoch for span in spans if span.kind != Kind.PLAN})


def _slowest(timeline: Timeline) -> str:
    waits = waits_for(timeline)
    rank = max(waits, key=lambda one: waits[one])
    if not waits[rank]:
        return "  no rank waited for another one"
    others = max(1, len(timeline.spans) - 1)
    share = waits[rank] / others / max(1, timeline.end_ns - timeline.begin_ns)
    steps: Counter[Step] = Counter()
    for spans in timeline.spans.values():
        for span in spans:
            if span.waited_for == rank:
                steps[span.step] += span.waited_ns
    (step, _), *_ = steps.most_common(1)
    return (
        f"  slowest: rank {rank}, for which each of the others waited {waits[rank] / others / 1e9:.3f} s ({share:.1%}"
        f" of the time), most at step {step.name.lower()}"
    )


def _steps(timeline: Timeline) -> list[str]:
    times = time_of_steps(timeline)
    total: Counter[Step] = sum(times.values(), Counter())
    if not total:
        return []
    steps = [step for step in Step if total[step]]
    (most, spent), *_ = total.most_common(1)
    lines = [
        f"  most time goes into {most.name.lower()}: {spent / total.total():.1%} of all steps",
        "  microseconds of each step in an exchange, waits included:",
    ]
    lines.append("      " + " ".join(f"{name:>9}" for name in ("", *(step.name.lower() for step in steps))))
    for rank, those in times.items():
        exchanges = max(1, _exchanges(timeline.spans[rank]))
        means = (f"{those[step] / exchanges / 1e3:9,.1f}" for step in steps)
        lines.append("      " + " ".join([f"{f'rank {rank}':>9}", *means]))
    return lines


def _layers(layers: Sequence[LayerRows]) -> list[str]:
    if not layers:
        return []
    lines = ["  rows of the busiest rank over the mean:"]
    for one in layers:
        name = "calls without a layer" if one.layer is None else f"layer {one.layer}"
        busiest = max(range(len(one.rows)), key=lambda rank: one.rows[rank])
        lines.append(f"      {name}: {one.imbalance:.2f} in {one.exchanges:,} exchanges; most on rank {busiest}")
    return lines


def _unfinished(timeline: Timeline) -> list[str]:
    return [
        f"  rank {rank} was in step {last.step.name.lower()} of epoch {last.epoch} at the end"
        for rank, spans in timeline.spans.items()
        if (last := next((span for span in reversed(spans) if not span.has_ended), None)) is not None
    ]
