"""Kernels on the model wait for what they must, no longer than the timeout, and name the rank they waited for.

Rank 0 runs the Ascend kernels, rank 1 the host kernels, whose step hook ends its part where the test wants it to end.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch.distributed as dist

from sglang_ascend_moe.codes import Step
from sglang_ascend_moe.errors import PeerLost, PeerTimeout, SessionPoisoned
from sglang_ascend_moe.exchange import Exchange
from sglang_ascend_moe.schedules.rows import ExpertRows
from tests.exchange.pool import Rank
from tests.exchange.reference import scale_by_expert
from tests.exchange.scenario import Scenario
from tests.exchange.surface import compute, open_exchange

from .model import on_model

SCENARIO = Scenario(tokens=(6, 5), topk=2)


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
        open_exchange("windows", rank, SCENARIO, timeout_s=5.0) as exchange,
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


def stay_away(rank: Rank, library: str, cores: int, calls: int) -> str:
    """Rank 1 does not take part in call number `calls`, and closes only when rank 0 has given up."""
    with (
        on_model(library, cores) if rank.rank == 0 else nullcontext(),
        open_exchange("windows", rank, SCENARIO, timeout_s=0.3) as exchange,
    ):
        text = ""
        if calls == 2:
            rows = dispatch(rank, exchange)
        if rank.rank == 0:
            with pytest.raises(PeerTimeout) as caught:
                dispatch(rank, exchange) if calls == 1 else exchange.combine(rows.out, rows)
            text = str(caught.value)
        dist.barrier(rank.group)
        return text


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
@pytest.mark.parametrize(("calls", "step"), [(1, "counts"), (2, "done")], ids=["dispatch", "combine"])
def test_a_rank_that_does_not_come_is_a_timeout_that_names_it(pools, library, cores, calls, step):
    text = pools.run(2, stay_away, library, cores, calls)[0]
    assert "rank 1 did not answer" in text
    assert step in text
