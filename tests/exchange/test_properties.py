"""Drawn configurations: whatever the shape of the call, the exchange equals the reference."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.exchange.schedules.test_rounds import run_in_rounds

from .scenario import DTYPES, ID_DTYPES, Routing, Rows, Scenario, Weights
from .test_bit_exact import exchange_in_every_schedule

EXAMPLES = {2: 60, 3: 40, 4: 30, 8: 15}
"""Examples by number of ranks: more ranks cost more and find less."""


@st.composite
def scenarios(draw: st.DrawFn, ranks: int) -> Scenario:
    routing = draw(st.sampled_from(get_args(Routing)))
    experts_per_rank = draw(st.integers(1, 9))
    most_topk = min(8, ranks * experts_per_rank) if routing == "distinct" else 8
    return Scenario(
        tokens=tuple(draw(st.lists(st.integers(0, 20), min_size=1, max_size=ranks))),
        experts_per_rank=experts_per_rank,
        hidden=16 * draw(st.integers(1, 9)),
        topk=draw(st.integers(1, most_topk)),
        dtype=draw(st.sampled_from(list(DTYPES))),
        id_dtype=draw(st.sampled_from(list(ID_DTYPES))),
        routing=routing,
        rows=draw(st.sampled_from(get_args(Rows))),
        weights=draw(st.sampled_from(get_args(Weights))),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


@pytest.mark.parametrize("ranks", EXAMPLES, ids=lambda ranks: f"{ranks}ranks")
def test_drawn_exchanges_equal_the_reference(pools, implementation, ranks):
    # Derandomised: the suite has to give the same answer twice. Raise max_examples to explore.
    @settings(
        max_examples=EXAMPLES[ranks],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate],  # a failure costs new ranks, and the scenario that failed says enough
    )
    @given(scenario=scenarios(ranks))
    def equals_the_reference(scenario: Scenario) -> None:
        pools.run(ranks, exchange_in_every_schedule, implementation, scenario)

    equals_the_reference()


@pytest.mark.parametrize("ranks", EXAMPLES, ids=lambda ranks: f"{ranks}ranks")
def test_drawn_windows_of_any_size_equal_the_reference(pools, ranks):
    @settings(
        max_examples=EXAMPLES[ranks] // 2,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate],  # a failure costs new ranks, and the scenario that failed says enough
    )
    @given(
        scenario=scenarios(ranks),
        hidden=st.sampled_from([256, 512, 1024]),
        tokens_of_window=st.integers(1, 9),
        workers=st.integers(1, 2),
    )
    def equals_the_reference(scenario: Scenario, hidden: int, tokens_of_window: int, workers: int) -> None:
        rounds = pools.run(ranks, run_in_rounds, scenario._replace(hidden=hidden), tokens_of_window, workers)
        assert len(set(rounds)) == 1, f"ranks took different numbers of rounds: {rounds}"

    equals_the_reference()
