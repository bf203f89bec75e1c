"""Kernels on the model wait for what they must, no longer than the timeout, and name the rank they waited for.

Rank 0 runs the Ascend kernels, rank 1 the host kernels, whose step hook ends its part where the test wants it to end.
"""

from __future__ import annotations

import os
import signal
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerLost, PeerTimeout, SessionPoisoned
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native.codes import Step
from tests.exchange.harmed_ranks import harm_at
from tests.exchange.pool import Rank
from tests.exchange.reference import scale_by_expert
from tests.exchange.scenario import Scenario
from tests.exchange.surface import compute, open_exchange

from .host_model import on_model

SCENARIO = Scenario(tokens=(6, 5), topk=2)
VAIN_S = 1.0
"""For which a rank waits in vain; what it does get has to come within that as well."""


class Stop(Exception):
    """Ends a call of the host kernels."""


def stop_at(step: Step):
    def hook(reached: Step) -> None:
        if reached == step:
            raise Stop

    return hook


def dispatch(rank: Rank, exchange: Exchange) -> ExpertRows:
    rows = exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
    compute(rows, scale_by_expert, rank)
    return rows


def leave_in_the_middle(rank: Rank, library: str, cores: int, step: Step) -> str:
    """Rank 1 fails at `step`; returns what the Ascend kernels of rank 0 made of it."""
    with (
        on_model(library, cores) if rank.rank == 0 else nullcontext(),
        open_exchange("windows", rank, SCENARIO) as exchange,
    ):
        rows = dispatch(rank, exchange) if step == Step.DONE else None
        exchange.watch_steps(stop_at(step) if rank.rank == 1 else None)
        with pytest.raises(Stop if rank.rank == 1 else PeerLost) as caught:
            # What ends this rank is the call in which the other left, no later one.
            dispatch(rank, exchange) if rows is None else exchange.combine(rows.out, rows)
        with pytest.raises(SessionPoisoned):
            dispatch(rank, exchange)
        return str(caught.value)


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
@pytest.mark.parametrize(
    "step", [Step.ANNOUNCE, Step.COUNTS, Step.PLACE, Step.DONE], ids=lambda step: step.name.lower()
)
def test_a_rank_that_fails_at_a_step_is_named(pools, library, cores, step):
    seen = pools.run(2, leave_in_the_middle, library, cores, step)
    assert "rank 1 failed" in seen[0]
    assert step.name.lower() in seen[0]


def fail_while_waited_for(rank: Rank, library: str) -> str:
    """Rank 1 fails before it places rows, but not until rank 0 waits for them."""
    with (
        on_model(library, 2) if rank.rank == 0 else nullcontext(),
        open_exchange("windows", rank, SCENARIO) as exchange,
    ):
        window, arrive = exchange._steps._windows[rank.rank], exchange.layout.offsets.arrive

        def stop_once_waited_for(reached: Step) -> None:
            while reached == Step.PLACE and window.view(arrive, (1,), torch.int64).item() == 0:
                os.sched_yield()
            stop_at(Step.PLACE)(reached)

        exchange.watch_steps(stop_once_waited_for if rank.rank == 1 else None)
        with pytest.raises(Stop if rank.rank == 1 else PeerLost) as caught:
            dispatch(rank, exchange)
        return str(caught.value)


def test_a_rank_that_fails_while_it_is_waited_for_is_named(pools, library):
    assert "rank 1 failed" in pools.run(2, fail_while_waited_for, library)[0]


def die_in_the_middle(rank: Rank, library: str, step: Step) -> str:
    with (
        on_model(library, 2) if rank.rank == 0 else nullcontext(),
        open_exchange("windows", rank, SCENARIO) as exchange,
    ):
        rows = dispatch(rank, exchange) if step == Step.DONE else None
        exchange.watch_steps(harm_at(step, signal.SIGKILL) if rank.rank == 1 else None)
        with pytest.raises(PeerLost) as caught:
            dispatch(rank, exchange) if rows is None else exchange.combine(rows.out, rows)
        with pytest.raises(SessionPoisoned):
            dispatch(rank, exchange)
        return str(caught.value)


@pytest.mark.parametrize("step", [Step.ANNOUNCE, Step.PLACE, Step.DONE], ids=lambda step: step.name.lower())
def test_a_rank_that_dies_is_named_by_the_host_beside_the_kernel(fresh_pool, library, step):
    pool = fresh_pool(2)
    pool.start(die_in_the_middle, library, step)
    assert "rank 1 has died" in pool.collect(dead={1})[0]


def keep_waiting(rank: Rank, library: str, cores: int, step: Step, folder: str | None = None) -> str:
    """Rank 1 does not do what rank 0 waits for at `step` until rank 0 has given up; returns what that one says.

    folder: of traces."""
    with (
        on_model(library, cores) if rank.rank == 0 else nullcontext(),
        open_exchange("windows", rank, SCENARIO, timeout_s=VAIN_S) as exchange,
    ):
        exchange.trace(folder)
        dist.barrier(rank.group)
        rows = dispatch(rank, exchange) if step == Step.DONE else None
        if rank.rank == 0:
            with pytest.raises(PeerTimeout) as caught:
                dispatch(rank, exchange) if rows is None else exchange.combine(rows.out, rows)
            dist.barrier(rank.group)
            return str(caught.value)
        if step == Step.ARRIVALS:
            exchange.watch_steps(lambda reached: dist.barrier(rank.group) if reached == Step.PLACE else None)
            dispatch(rank, exchange)
        else:
            dist.barrier(rank.group)
        return ""


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
@pytest.mark.parametrize("step", [Step.COUNTS, Step.ARRIVALS, Step.DONE], ids=lambda step: step.name.lower())
def test_a_rank_that_is_waited_for_in_vain_is_named(pools, library, cores, step):
    text = pools.run(2, keep_waiting, library, cores, step)[0]
    assert "rank 1 did not answer" in text
    assert step.name.lower() in text
