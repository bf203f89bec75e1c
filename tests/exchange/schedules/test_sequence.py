"""Long sequences: thousands of calls that alternate schedules on one exchange, every one checked."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from tests.exchange import reference
from tests.exchange.bits import require_same_values
from tests.exchange.pool import Rank
from tests.exchange.reference import RankInput, scale_by_expert, scale_by_place
from tests.exchange.rounds import window_bytes_for
from tests.exchange.scenario import Scenario
from tests.exchange.surface import compute, open_exchange, require_rows

# Rows of a quarter page: the regions of a window are rounded up to pages, and small ones would never be full.
SHORT = Scenario(tokens=(3, 2, 0, 1), experts_per_rank=2, hidden=512, topk=2, max_tokens=12)
LONG = Scenario(tokens=(12, 1, 7, 0), experts_per_rank=2, hidden=512, topk=2, max_tokens=12)
VARIANTS = (
    {"routing": "uniform"},
    {"routing": "sparse"},
    {"routing": "one-expert"},
    {"routing": "hot-rank"},
    {"routing": "sparse", "rows": "special"},
    {"routing": "nothing"},
    {"routing": "uniform", "tokens": (0,)},
    {"routing": "repeated-in-token", "weights": "special"},
)


class Case(NamedTuple):
    """A call and what it has to give on this rank."""

    mine: RankInput
    rows: reference.RankRows
    combined_by_place: object
    combined_by_expert: object


def cases(rank: Rank, scenario: Scenario, number: int) -> list[Case]:
    made = []
    for seed in range(number):
        inputs = scenario._replace(seed=seed, **VARIANTS[seed % len(VARIANTS)]).inputs(rank.size)
        by_place, by_expert = (
            reference.exchange(inputs, scenario.num_experts(rank.size), experts)
            for experts in (scale_by_place, scale_by_expert)
        )
        made.append(
            Case(
                inputs[rank.rank],
                by_place.rows[rank.rank],
                by_place.combined[rank.rank],
                by_expert.combined[rank.rank],
            )
        )
    return made


def alternate_schedules(rank: Rank, implementation: str, calls: int, workers: int) -> int:
    """Returns how often experts were called by `run`."""
    # The numbers of cases are prime and neither is 3, so that in time every schedule follows every case.
    short, long = cases(rank, SHORT, 61), cases(rank, LONG, 37)
    options = {}
    if implementation == "windows":
        options = {"window_bytes": window_bytes_for(rank.size, SHORT, tokens=3), "workers": workers}
    rounds = 0

    def experts(rows) -> None:
        nonlocal rounds
        rounds += 1
        compute(rows, scale_by_expert, rank)

    with open_exchange(implementation, rank, SHORT, **options) as exchange:
        for call in range(calls):
            if call % 3 == 2:
                case = long[call % len(long)]
                combined = exchange.run(*case.mine, experts, phase="prefill")
                require_same_values(combined, case.combined_by_expert, f"call {call}: run")
                continue
            case = short[call % len(short)]
            rows = exchange.dispatch(*case.mine, phase="decode" if call % 3 == 0 else "prefill")
            require_rows(rows, case.rows, f"call {call}")
            compute(rows, scale_by_place, rank)
            combined = exchange.combine(rows.out, rows)
            require_same_values(combined, case.combined_by_place, f"call {call}: combine")
    return rounds


@pytest.mark.parametrize(
    ("implementation", "ranks", "calls", "workers"),
    [
        ("windows", 2, 10_000, 1),
        ("windows", 2, 1_500, 2),
        ("windows", 3, 1_500, 1),
        ("windows", 3, 1_200, 2),
        ("windows", 4, 1_200, 1),
        ("collective", 2, 600, 1),
    ],
    ids=lambda value: str(value),
)
def test_thousands_of_calls_that_alternate_schedules(pools, implementation, ranks, calls, workers):
    rounds = pools.run(ranks, alternate_schedules, implementation, calls, workers, deadline_s=200.0)
    assert len(set(rounds)) == 1, "ranks took different numbers of rounds"
    if implementation == "windows":
        assert rounds[0] > calls // 3, "no call took more than one round"
