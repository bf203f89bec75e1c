"""Drawn configurations over the Ascend kernels: whatever the shape of the call, on every number of ranks and cores."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.exchange.pool import Program, Rank
from tests.exchange.scenario import Scenario
from tests.exchange.schedules.test_rounds import run_in_rounds
from tests.exchange.surface import granting
from tests.exchange.test_bit_exact import exchange_in_every_schedule
from tests.exchange.test_int8 import exchange_quantised
from tests.exchange.test_properties import scenarios

from .conftest import AscendPools

RANKS_AND_CORES = [(2, 1), (2, 2), (2, 8), (4, 1), (4, 2), (4, 8)]
EXAMPLES = {2: 16, 4: 8}
"""Examples by number of ranks, per test and number of cores."""
NIGHTLY_TIMES = 15
"""So many times more of them every night."""


def by_matrix(rank: Rank, program: Program, *arguments: object) -> object:
    """The opposite of `granting`."""
    return program(rank, *arguments)


schemes = st.sampled_from([by_matrix, granting])

every_combination = pytest.mark.parametrize(
    ("ranks", "cores"), RANKS_AND_CORES, ids=[f"{ranks}ranks-{cores}cores" for ranks, cores in RANKS_AND_CORES]
)
widths = pytest.mark.parametrize(
    "times", [1, pytest.param(NIGHTLY_TIMES, marks=pytest.mark.nightly)], ids=["few", "many"]
)


def drawn(examples: int):
    """Derandomised: the suite has to give the same answer twice."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
        phases=[Phase.generate],  # a failure costs new ranks, and the scenario that failed says enough
    )


@widths
@every_combination
def test_drawn_exchanges_equal_the_reference_to_the_bit(pools: AscendPools, library, ranks, cores, times):
    @drawn(times * EXAMPLES[ranks])
    @given(scenario=scenarios(ranks), scheme=schemes)
    def equals_the_reference(scenario: Scenario, scheme: Program) -> None:
        pools.run_on(ranks, library, cores, scheme, exchange_in_every_schedule, "windows", scenario)

    equals_the_reference()


@pytest.mark.parametrize("cores", [1, 2, 8])
def test_drawn_exchanges_whose_instructions_take_effect_late_have_the_same_bits(
    pools: AscendPools, delayed_library, cores
):
    @drawn(EXAMPLES[2])
    @given(scenario=scenarios(2), scheme=schemes)
    def equals_the_reference(scenario: Scenario, scheme: Program) -> None:
        pools.run_on(2, delayed_library, cores, scheme, exchange_in_every_schedule, "windows", scenario)

    equals_the_reference()


@widths
@every_combination
def test_drawn_windows_of_any_size_equal_the_reference(pools: AscendPools, library, ranks, cores, times):
    @drawn(times * EXAMPLES[ranks] // 2)
    @given(
        scenario=scenarios(ranks),
        hidden=st.sampled_from([16 * 37, 512, 1024]),
        tokens_of_window=st.integers(1, 9),
        overlap=st.booleans(),
    )
    def equals_the_reference(scenario: Scenario, hidden: int, tokens_of_window: int, overlap: bool) -> None:
        given_rows = scenario._replace(hidden=hidden)
        rounds = pools.run_on(ranks, library, cores, run_in_rounds, given_rows, tokens_of_window, 1 + overlap)
        assert len(set(rounds)) == 1, f"ranks took different numbers of rounds: {rounds}"

    equals_the_reference()


@widths
@every_combination
def test_drawn_int8_rows_are_those_of_the_host_kernels(pools: AscendPools, library, ranks, cores, times):
    @drawn(times * EXAMPLES[ranks] // 2)
    @given(scenario=scenarios(ranks))
    def equals_the_reference(scenario: Scenario) -> None:
        pools.run_on(ranks, library, cores, exchange_quantised, scenario, False)

    equals_the_reference()
