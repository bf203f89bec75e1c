"""Kernels leave the times of their steps, and only where they are asked to, for the events of a host's trace."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path

import pytest

from sglang_ascend_moe.exchange.control.trace_file import TraceEvent, read_trace
from sglang_ascend_moe.native.codes import Kind, Step
from tests.exchange.control.test_trace_file import CALLED, DISPATCH, trace_calls
from tests.exchange.pool import Rank
from tests.exchange.reference import scale_by_expert
from tests.exchange.scenario import Scenario
from tests.exchange.surface import compute, open_exchange

from .test_waits import VAIN_S, keep_waiting

RANKS, UNTRACED, CALLS = 3, 1, 2


def check_events(events: list[TraceEvent]) -> None:
    """Those of one rank: each in its place, and no time of another."""
    for one, other in pairwise(events):
        assert one.epoch == other.epoch or other.step == Step.ANNOUNCE
        if one.epoch == other.epoch:
            assert max(one.begin_ns, one.end_ns) <= other.begin_ns
    for event in events:
        assert event.end_ns == 0 or event.waited_ns <= event.end_ns - event.begin_ns
        assert event.end_ns > 0 or event.step == Step.EXPERTS
        assert (event.waited_for >= 0) == (event.waited_ns > 0)
        assert event.waited_for == -1 or event.step not in (Step.ANNOUNCE, Step.PLACE)


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
@pytest.mark.parametrize("how", ["decode", "prepared", "run-prefill"])
def test_times_of_steps_become_events_of_the_calls_that_are_traced(pools, library, cores, how):
    with tempfile.TemporaryDirectory() as folder:
        placed = pools.run_on(RANKS, library, cores, trace_calls, folder, [how] * CALLS)
        traces = {trace.header.rank: trace for trace in map(read_trace, Path(folder).iterdir())}
    assert sorted(traces) == list(range(RANKS))
    plan = [Step.ANNOUNCE, Step.COUNTS] if how == "run-prefill" else []
    received = 0
    for rank, trace in traces.items():
        assert [event.step for event in trace.events] == [*plan, *CALLED] * CALLS
        assert [event.rows for event in trace.events if event.step == Step.PLACE] == [placed[rank]] * CALLS
        received += sum(event.rows for event in trace.events if event.step == Step.ARRIVALS)
        epochs = {event.epoch for event in trace.events}
        assert epochs == set(range(UNTRACED + 1, UNTRACED + 1 + CALLS * (2 if plan else 1)))
        check_events(trace.events)
        kinds = {event.kind for event in trace.events if event.step == Step.PLACE}
        assert kinds == {Kind.PREFILL if plan else Kind.DECODE}
    assert received == CALLS * sum(placed)


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
@pytest.mark.parametrize("step", [Step.COUNTS, Step.ARRIVALS, Step.DONE], ids=lambda step: step.name.lower())
def test_a_step_that_waits_in_vain_names_for_whom_and_is_the_last(pools, library, cores, step, tmp_path):
    pools.run(2, keep_waiting, library, cores, step, str(tmp_path))
    [events] = [trace.events for trace in map(read_trace, tmp_path.iterdir()) if trace.header.rank == 0]
    assert [event.step for event in events] == CALLED[: CALLED.index(step) + 1]
    check_events(events)
    assert {event.kind for event in events if event.step in DISPATCH} == {Kind.DECODE}
    assert events[-1].waited_for == 1
    # Counted from the first look at its word on.
    assert events[-1].waited_ns > 0.1e9 * VAIN_S


def combine_twice(rank: Rank, folder: str) -> None:
    scenario = Scenario(tokens=(6, 5, 4), topk=2)
    with open_exchange("windows", rank, scenario) as exchange:
        exchange.trace(folder)
        rows = exchange.dispatch(*scenario.inputs(rank.size)[rank.rank])
        compute(rows, scale_by_expert, rank)
        for _ in range(2):
            exchange.combine(rows.out, rows)


def test_the_rendezvous_before_another_combine_is_a_step_of_its_own(pools, library, tmp_path):
    pools.run_on(RANKS, library, 2, combine_twice, str(tmp_path))
    for trace in map(read_trace, tmp_path.iterdir()):
        assert [event.step for event in trace.events] == [*CALLED, Step.REJOIN, Step.DONE, Step.REDUCE]
        check_events(trace.events)
