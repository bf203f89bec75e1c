"""A session and its calls are gone as soon as nobody holds them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from weakref import ref

import pytest

from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.native.codes import Step
from tests.exchange.pool import Rank
from tests.exchange.scenario import Scenario
from tests.exchange.surface import open_exchange

SCENARIO = Scenario(tokens=(3,), hidden=32, topk=2)
Alive = Callable[[], list[bool]]


def used_exchange(rank: Rank) -> tuple[Exchange, Alive]:
    """An exchange, and whether its session and the memory of its call are still there."""
    exchange = open_exchange("windows", rank, SCENARIO)
    rows = exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
    exchange.combine(rows.out.zero_(), rows)
    kept = ref(rows.ticket.session), ref(rows.ticket.call.positions)
    return exchange, lambda: [one() is not None for one in kept]


def drop(rank: Rank, *, closed: bool) -> None:
    gc.collect()
    gc.disable()
    try:
        exchange, alive = used_exchange(rank)
        assert alive() == [True, True]
        if closed:
            exchange.close()
        del exchange
        assert alive() == [False, False]
    finally:
        gc.enable()


def close_and_drop(rank: Rank) -> None:
    drop(rank, closed=True)


def drop_open(rank: Rank) -> None:
    drop(rank, closed=False)


@pytest.mark.parametrize("program", [close_and_drop, drop_open], ids=["closed", "open"])
def test_a_dropped_session_and_its_call_are_gone_without_a_collection(pools, program):
    pools.run(1, program)


def watch_by_itself(exchange: Exchange) -> list[Step]:
    steps: list[Step] = []

    def hook(step: Step) -> None:
        assert exchange.rank == 0
        steps.append(step)

    exchange.watch_steps(hook)
    return steps


def drop_watched(rank: Rank) -> None:
    exchange, alive = used_exchange(rank)
    steps = watch_by_itself(exchange)
    rows = exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
    assert Step.PLACE in steps
    del exchange, rows
    gc.collect()
    assert alive() == [False, False]


def test_a_step_hook_that_holds_its_own_exchange_keeps_nothing_alive(pools):
    pools.run(1, drop_watched)
