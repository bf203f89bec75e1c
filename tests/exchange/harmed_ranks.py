"""Programs in which a rank comes to harm at a chosen step, and what its peers have to make of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from sglang_ascend_moe.errors import PeerFault, SessionPoisoned
from sglang_ascend_moe.native.codes import Step

from . import reference
from .bits import require_same_values
from .pool import Rank
from .reference import scale_by_expert
from .rounds import window_bytes_for
from .scenario import Scenario
from .surface import compute, open_exchange

SCENARIO = Scenario(tokens=(6, 4, 7), max_tokens=7, experts_per_rank=12, topk=3, hidden=512)
CALLS = ("decode", "prefill", "run-decode", "run-prefill")


class Seen(NamedTuple):
    """The exception a survivor got."""

    code: str
    message: str
    rank: int | None
    step: str | None
    epoch: int | None
    at: float
    """Seconds of the monotonic clock, which all processes share."""


def call(exchange: Any, how: str, rank: Rank, scenario: Scenario = SCENARIO) -> None:
    """Dispatch, experts and combine, checked."""
    inputs = scenario.inputs(rank.size)
    expected = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_expert).combined[rank.rank]
    mine = inputs[rank.rank]
    if how.startswith("run"):
        phase = how.removeprefix("run-")
        combined = exchange.run(*mine, lambda rows: compute(rows, scale_by_expert, rank), phase=phase)
    elif how == "prepared":
        combined = torch.empty_like(mine[0])
        exchange.prepare(*mine, lambda rows: compute(rows, scale_by_expert, rank), combined)()
    else:
        rows = exchange.dispatch(*mine, phase=how)
        compute(rows, scale_by_expert, rank)
        combined = exchange.combine(rows.out, rows)
    require_same_values(combined, expected, how)


def small_window(rank: Rank) -> dict[str, int]:
    """Options that make `run-prefill` take several rounds; with two workers they overlap."""
    return {"window_bytes": window_bytes_for(rank.size, SCENARIO, tokens=2)}


def harm_at(step: Step, number: signal.Signals) -> Callable[[Step], None]:
    """A step hook that sends this process a signal when `step` begins for the first time."""
    harmed = False

    def hook(begun: Step) -> None:
        nonlocal harmed
        if begun == step and not harmed:
            harmed = True
            os.kill(os.getpid(), number)

    return hook


def raise_at(step: Step, error: Exception) -> Callable[[Step], None]:
    """A step hook that raises when `step` begins."""

    def hook(begun: Step) -> None:
        if begun == step:
            raise error

    return hook


def require_poisoned(exchange: Any, rank: Rank) -> None:
    """Every entry refuses a poisoned exchange, and closing it is still in order."""
    x, ids, weights = SCENARIO.inputs(rank.size)[rank.rank]
    for use in (
        lambda: exchange.dispatch(x, ids, weights),
        lambda: exchange.dispatch(x, ids, weights, phase="prefill"),
        lambda: exchange.run(x, ids, weights, lambda _: None),
        lambda: exchange.run(x, ids, weights, lambda _: None, phase="prefill"),
    ):
        try:
            use()
        except SessionPoisoned:
            continue
        raise AssertionError("a poisoned exchange was used")
    exchange.close()


def require_new_exchange_works(rank: Rank, implementation: str, name: str, members: list[int]) -> None:
    """A new exchange on a new group of those who are left."""
    rank.regroup(name, members)
    with open_exchange(implementation, rank, SCENARIO) as exchange:
        for how in CALLS:
            call(exchange, how, rank)


def call_repeatedly(exchange: Any, how: str, rank: Rank, calls: int) -> None:
    for _ in range(calls):
        call(exchange, how, rank)


def see_fault(exchange: Any, rank: Rank, how: str, calls: int) -> Seen:
    """Call until a peer's fault is raised, at most `calls` times."""
    try:
        call_repeatedly(exchange, how, rank, calls)
    except PeerFault as error:
        at = time.monotonic()
        return Seen(error.code, str(error), error.rank, error.step, error.epoch, at)
    raise AssertionError(f"{calls} calls of {how} went by without a fault")
