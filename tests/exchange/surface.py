"""Both implementations of the surface, by name, so that a test can be parametrised over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

from sglang_ascend_moe.exchange import opening
from sglang_ascend_moe.exchange.collective_exchange import CollectiveExchange
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.windows.layout import exchange_parameters

from .bits import require_same_bits
from .pool import Rank
from .reference import Experts, RankRows
from .scenario import Scenario

IMPLEMENTATIONS = {"windows": Exchange, "collective": CollectiveExchange}
PHASES = ("decode", "prefill")
ALWAYS_GRANTING = -(10**9)
"""In place of `layout.RENDEZVOUS_UNITS`: a rendezvous costs nothing."""


def open_exchange(implementation: str, rank: Rank, scenario: Scenario, **options: Any) -> Any:
    """An exchange for the scenario on the group of the pool; `options` override the scenario's."""
    return IMPLEMENTATIONS[implementation].create(rank.group, **{**scenario.options(rank.size), **options})


def open_after(first_epoch: int, rank: Rank, scenario: Scenario, **options: Any) -> Exchange:
    """An exchange over windows that pretends to have so many exchanges behind it."""
    parameters = exchange_parameters(ranks=rank.size, **{**scenario.options(rank.size), **options})
    return Exchange(opening.open_exchange(rank.group, parameters, first_epoch=first_epoch))


def granting(rank: Rank, program: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a program on exchanges in which ranks grant places, however few they are."""
    with patch("sglang_ascend_moe.windows.layout.RENDEZVOUS_UNITS", ALWAYS_GRANTING):
        return program(rank, *arguments)


def compute(rows: ExpertRows, experts: Experts, rank: Rank) -> None:
    """Let `experts` write `rows.out` from `rows.rows`."""
    total = int(rows.counts.sum())
    rows.out[:total] = experts(rows.rows[:total], rows.counts, rank.rank * len(rows.counts))


def require_rows(rows: ExpertRows, expected: RankRows, what: str) -> None:
    """Raise unless counts and rows are what the reference says, bit for bit."""
    require_same_bits(rows.counts, expected.counts, f"{what}: counts")
    total = int(expected.counts.sum())
    if min(len(rows.rows), len(rows.out)) < total:
        raise AssertionError(f"{what}: room for {len(rows.rows)} rows and {len(rows.out)} results, {total} expected")
    require_same_bits(rows.rows[:total], expected.rows, f"{what}: rows")
