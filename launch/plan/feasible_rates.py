"""The highest request rate at which a deployment keeps its limits, by simulation, and which limit ends it."""

from __future__ import annotations

from math import ceil, isinf
from typing import Literal

import msgspec

from sglang_ascend_moe.launch.plan.die_bytes import DieBytes
from sglang_ascend_moe.launch.plan.machine_times import Schedule
from sglang_ascend_moe.launch.plan.request_queues import Latencies, Workload, simulate
from sglang_ascend_moe.launch.plan.step_time import handover_seconds
from sglang_ascend_moe.launch.plan.topologies import (
    Question,
    ServerChoice,
    Topology,
    simulated,
    topologies,
)

Binding = Literal["TTFT", "TPOT", "both", "memory"]
LEAST_REQUESTS, MOST_REQUESTS = 400, 10_000
TIMES_UNDER_WAY = 2.5
"""See `STEADY`."""
MOST_ABOVE, MOST_BELOW = 4, 64
"""Times the bound of a topology, between which the best rate is looked for."""
HALVINGS = 6
"""Then between a rate and its double."""


class RatePoint(msgspec.Struct, frozen=True):
    """What was simulated at one request rate: median and 99th percentile, in ms."""

    rate: float
    ttft_ms: float
    ttft_p99_ms: float
    tpot_ms: float
    tpot_p99_ms: float
    output_tokens_per_s: float


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A deployment. feasible: whether it keeps the limits at `best`, the highest rate that was found, or that was asked
    for. binds: the limit that a higher rate misses, or that this one misses; memory, where requests wait for room for
    their keys and values until they miss the TTFT. points: what was simulated, by rate."""

    schedule: Schedule
    first: ServerChoice
    second: ServerChoice | None
    bytes: tuple[DieBytes, ...]
    feasible: bool
    binds: Binding | None
    best: RatePoint
    points: list[RatePoint]


def choices(question: Question, schedule: Schedule, looked_at: int) -> list[Choice]:
    """Of each kind of topology (servers apart, or not) the `looked_at` with the greatest bound; the best first."""
    every = topologies(question, schedule)
    kinds = [one for one in every if one.second is None], [one for one in every if one.second is not None]
    found = [best_rate(question, topology) for kind in kinds for topology in kind[:looked_at]]
    return sorted(found, key=lambda choice: (-choice.feasible, -choice.best.rate, choice.best.ttft_ms))


def best_rate(question: Question, topology: Topology) -> Choice:
    """Doubles or halves the rate from the bound of the topology, then halves what is between."""
    points: dict[float, tuple[RatePoint, Binding | None]] = {}

    def missed(rate: float) -> Binding | None:
        found = _simulated(question, topology, rate)
        point = point_of(found, rate)
        points[rate] = (point, _cause(question, topology, point, _missed(question, found)))
        return points[rate][1]

    if question.rate is not None:
        binds = missed(question.rate)
        best, feasible = points[question.rate][0], binds is None
    else:
        low, high = 0.0, topology.bound
        while high < topology.bound * MOST_ABOVE and missed(high) is None:
            low, high = high, high * 2
        while low == 0.0 and high > topology.bound / MOST_BELOW:
            low, high = (high / 2, high) if missed(high / 2) is None else (0.0, high / 2)
        for _ in range(HALVINGS if low else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if missed(middle) is None else (low, middle)
        feasible = low > 0
        best = points[low or min(points)][0]
        worse = [binding for rate, (_, binding) in sorted(points.items()) if binding and rate >= best.rate]
        binds = worse[0] if worse else None
    return Choice(
        schedule=topology.schedule, first=topology.first, second=topology.second, bytes=topology.bytes,
        feasible=feasible, binds=binds, best=best, points=[point for _, (point, _) in sorted(points.items())],
    )  # fmt: skip


def requests_of(question: Question, rate: float) -> int:
    """Enough to fill the servers and keep them full, if tokens come as slowly as they may; at rates of hundreds, which
    small models reach, fewer."""
    under_way = rate * (question.ttft + question.output_tokens * question.tpot)
    return min(MOST_REQUESTS, max(LEAST_REQUESTS, ceil(TIMES_UNDER_WAY * under_way)))


def transfer_seconds(question: Question, topology: Topology) -> float:
    if topology.second is None:
        return 0.0
    return handover_seconds(
        question.work, question.machine, question.input_tokens, topology.first.tp // topology.first.dp
    )


def _simulated(question: Question, topology: Topology, rate: float) -> Latencies:
    load = Workload(requests_of(question, rate), question.input_tokens, question.output_tokens, rate=rate)
    arrival = question.machine.request_us / 1e6
    found = simulate(
        load, simulated(question, topology), transfer_seconds(question, topology), arrival,
        shared=question.machine.shared,
    )  # fmt: skip
    return found.steady()


def _missed(question: Question, found: Latencies) -> Binding | None:
    ttft, tpot = found.at(question.part)
    match ttft > question.ttft, tpot > question.tpot:
        case True, True:
            return "both"
        case True, False:
            return "TTFT"
        case False, True:
            return "TPOT"
    return None


def _cause(question: Question, topology: Topology, point: RatePoint, missed: Binding | None) -> Binding | None:
    """Memory, if requests miss the TTFT and as many would be under way as there is room for (Little's law)."""
    writers = topology.second or topology.first
    room = topology.bytes[-1].tokens // (question.input_tokens + question.output_tokens)
    under_way = point.rate * question.output_tokens * point.tpot_ms / 1e3
    full = room < writers.running and under_way >= room * writers.instances
    return "memory" if missed == "TTFT" and full else missed


def point_of(found: Latencies, rate: float) -> RatePoint:
    ttft, tpot = found.median
    late_ttft, late_tpot = found.at(0.99)
    output = 0.0 if isinf(found.elapsed) else found.output_rate
    return RatePoint(rate, ttft * 1e3, late_ttft * 1e3, tpot * 1e3, late_tpot * 1e3, output)
