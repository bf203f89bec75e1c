"""Every rank dies, stalls and raises at every step of both schedules: every survivor names it, nobody hangs, the
exchange is then poisoned and a new one works.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

from sglang_ascend_moe.errors import PeerFault, PeerLost, PeerTimeout, SessionPoisoned
from sglang_ascend_moe.native.codes import Step

from .harmed_ranks import (
    SCENARIO,
    Seen,
    call_repeatedly,
    harm_at,
    raise_at,
    require_new_exchange_works,
    require_poisoned,
    see_fault,
    small_window,
)
from .pool import Ended, Rank
from .surface import open_exchange

STEPS = [Step.ANNOUNCE, Step.COUNTS, Step.PLACE, Step.ARRIVALS, Step.EXPERTS, Step.DONE, Step.REDUCE]
HOWS = ["decode", "run-prefill"]
# A wait that lasted longer than this would end in PeerTimeout: PeerLost means that the death was noticed sooner.
NOTICED_WITHIN_S = 10.0
CALLS_BEFORE = 3


def cases() -> Iterator:
    """(ranks, culprit, how, step); of eight ranks the outermost and one between. On every change three ranks."""
    for ranks, culprits in ((2, range(2)), (3, range(3)), (4, range(4)), (8, (0, 5, 7))):
        for culprit in culprits:
            for how in HOWS:
                for step in STEPS:
                    name = f"{ranks}ranks-rank{culprit}-{how}-{step.name.lower()}"
                    marks = [] if ranks == 3 else [pytest.mark.nightly]
                    yield pytest.param(ranks, culprit, how, step, id=name, marks=marks)


def everyone_but(culprit: int, ranks: int) -> list[int]:
    return [rank for rank in range(ranks) if rank != culprit]


def open_for(rank: Rank, how: str, timeout_s: float):
    options = small_window(rank) if how == "run-prefill" else {}
    exchange = open_exchange("windows", rank, SCENARIO, timeout_s=timeout_s, **options)
    call_repeatedly(exchange, how, rank, CALLS_BEFORE)
    # Of a call's last words some ranks have theirs before others, and may fail in the next one meanwhile.
    torch.distributed.barrier()
    return exchange


def require_named(seen: Seen, kind: type[PeerFault], culprit: int) -> None:
    """Rank, step and epoch are named, as attributes and in words."""
    assert (seen.code, seen.rank) == (kind.code, culprit), seen
    assert [named for named in (f"rank {culprit}", seen.step, f"epoch {seen.epoch}") if named not in seen.message] == []
    assert seen.epoch > CALLS_BEFORE, seen


def die(rank: Rank, culprit: int, how: str, step: Step, timeout_s: float) -> Seen:
    exchange = open_for(rank, how, timeout_s)
    if rank.rank == culprit:
        exchange.watch_steps(harm_at(step, signal.SIGKILL))
    # Who dies in the last step has done its part of that call: the next one finds out.
    seen = see_fault(exchange, rank, how, calls=2)
    require_poisoned(exchange, rank)
    require_new_exchange_works(rank, "windows", "after the death", everyone_but(culprit, rank.size))
    return seen


@pytest.mark.parametrize(("ranks", "culprit", "how", "step"), cases())
def test_a_killed_rank_is_named_by_every_survivor(fresh_pool, ranks, culprit, how, step):
    pool = fresh_pool(ranks)
    pool.start(die, culprit, how, step, NOTICED_WITHIN_S)
    results = pool.collect(dead={culprit})
    assert results[culprit] == Ended(-signal.SIGKILL)
    for rank in everyone_but(culprit, ranks):
        require_named(results[rank], PeerLost, culprit)


def stall(rank: Rank, culprit: int, how: str, step: Step, timeout_s: float) -> Seen | None:
    exchange = open_for(rank, how, timeout_s)
    seen = None
    if rank.rank == culprit:
        exchange.watch_steps(harm_at(step, signal.SIGSTOP))
        with pytest.raises((PeerFault, SessionPoisoned)):
            call_repeatedly(exchange, how, rank, calls=2)
        exchange.watch_steps(None)
    else:
        seen = see_fault(exchange, rank, how, calls=2)
        rank.note("timed out")
    require_poisoned(exchange, rank)
    require_new_exchange_works(rank, "windows", "after the stall", list(range(rank.size)))
    return seen


@pytest.mark.parametrize(("ranks", "culprit", "how", "step"), cases())
def test_a_stopped_rank_is_named_and_learns_of_it_when_it_resumes(fresh_pool, ranks, culprit, how, step):
    pool = fresh_pool(ranks)
    pool.start(stall, culprit, how, step, 1.0 if ranks <= 3 else 5.0)
    pool.await_notes("timed out", everyone_but(culprit, ranks))
    pool.signal(culprit, signal.SIGCONT)
    results = pool.collect()
    for rank in everyone_but(culprit, ranks):
        require_named(results[rank], PeerTimeout, culprit)


def fail(rank: Rank, culprit: int, how: str, step: Step) -> Seen | None:
    exchange = open_for(rank, how, 30.0)
    seen = None
    if rank.rank == culprit:
        exchange.watch_steps(raise_at(step, ArithmeticError("no such step")))
        with pytest.raises(ArithmeticError, match="no such step"):
            call_repeatedly(exchange, how, rank, calls=2)
        exchange.watch_steps(None)
    else:
        seen = see_fault(exchange, rank, how, calls=2)
    require_poisoned(exchange, rank)
    require_new_exchange_works(rank, "windows", "after the failure", list(range(rank.size)))
    return seen


@pytest.mark.parametrize(("ranks", "culprit", "how", "step"), cases())
def test_a_rank_that_raises_is_named_by_the_others(fresh_pool, ranks, culprit, how, step):
    results = fresh_pool(ranks).run(fail, culprit, how, step)
    for rank in everyone_but(culprit, ranks):
        require_named(results[rank], PeerLost, culprit)


def lose_a_rank_before_a_second_combine(rank: Rank, culprit: int) -> int | None:
    exchange = open_exchange("windows", rank, SCENARIO)
    rows = exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
    exchange.combine(rows.out.zero_(), rows)
    if rank.rank == culprit:
        exchange.watch_steps(harm_at(Step.REJOIN, signal.SIGKILL))
    with pytest.raises(PeerLost, match=f"rank {culprit}") as caught:
        exchange.combine(rows.out, rows)
    require_poisoned(exchange, rank)
    return caught.value.rank


@pytest.mark.parametrize("culprit", [0, 1, 2], ids=lambda rank: f"rank{rank}")
def test_a_rank_killed_before_a_second_combine_is_named(fresh_pool, culprit):
    pool = fresh_pool(3)
    pool.start(lose_a_rank_before_a_second_combine, culprit)
    results = pool.collect(dead={culprit})
    assert [results[rank] for rank in everyone_but(culprit, 3)] == [culprit, culprit]
