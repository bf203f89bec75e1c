"""Ascend kernels that grant places give the bits, the refusals and the counts of a matrix. `pytest --granting
tests/ascend` runs every test so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
import torch.distributed as dist
from hypothesis import given, settings

from sglang_ascend_moe.errors import Corruption, PeerTimeout, SessionPoisoned
from sglang_ascend_moe.native.codes import Kind, Step
from sglang_ascend_moe.windows.layout import plan_window
from tests.exchange.pool import Rank
from tests.exchange.scenario import Scenario
from tests.exchange.schedules.test_rounds import run_in_rounds
from tests.exchange.surface import granting, open_exchange
from tests.exchange.test_bit_exact import SCENARIOS, exchange_in_every_schedule
from tests.exchange.test_grants import see_the_same
from tests.exchange.test_joint_refusals import disagree, overfill_window, refuse_one_rank
from tests.exchange.test_refusal_sequences import mix_refusals
from tests.exchange.test_workers import run_overlapped
from tests.native.test_foreign_words import EPOCH, GRANTING, Grant, dispatch_with, grants, require_granted_or_named

from .conftest import AscendPools
from .host_model import on_mixed, on_model
from .test_exchange import SPLITS
from .test_waits import SCENARIO, VAIN_S, dispatch, leave_in_the_middle


def run_granting(
    pools: AscendPools, ranks: int, library: str, cores: int, program: Callable[..., Any], *arguments: object
) -> list:
    return pools.run_on(ranks, library, cores, granting, program, *arguments)


@pytest.mark.parametrize("scenario", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize(("ranks", "cores"), [(2, 8), (4, 1), (4, 2)], ids=lambda number: str(number))
def test_any_division_over_cores_gives_the_same_bits(pools, library, ranks, cores, scenario):
    run_granting(pools, ranks, library, cores, exchange_in_every_schedule, "windows", scenario)


@pytest.mark.parametrize("name", ["bf16-int64", "top8", "many-experts-per-rank", "no-token-on-some-ranks"])
def test_ranks_with_host_kernels_and_ranks_with_ascend_kernels_work_together(pools, library, name):
    pools.run(3, on_mixed, library, 2, granting, exchange_in_every_schedule, "windows", SCENARIOS[name])


def test_counts_and_refusals_are_those_of_a_matrix(pools, library):
    granted, known = (pools.run_on(4, library, 3, see_the_same, counts) for counts in ("grants", "matrix"))
    assert granted == known


def test_refusals_and_calls_in_any_order(pools, library):
    run_granting(pools, 3, library, 2, mix_refusals, "windows", 60)


@pytest.mark.parametrize("name", ["id-minus-two", "id-past-the-end"])
def test_bad_input_on_one_rank_is_refused_on_every_rank(pools, library, name):
    run_granting(pools, 3, library, 2, refuse_one_rank, "windows", name, "dispatch-decode")


def test_decode_against_prefill_is_a_mismatch_on_every_rank(pools, library):
    run_granting(pools, 3, library, 2, disagree, "windows", "dispatch-decode", "dispatch-prefill")


def test_rows_that_do_not_fit_the_window_are_refused_on_every_rank(pools, library):
    run_granting(pools, 2, library, 2, overfill_window, "dispatch-decode")


def test_many_rounds_equal_the_reference_to_the_bit(pools, library):
    scenario = Scenario(hidden=512, tokens=(40, 33), routing="hot-rank", topk=4)
    assert len(set(run_granting(pools, 3, library, 2, run_in_rounds, scenario, 2))) == 1


def test_rounds_that_overlap_in_half_windows_give_the_same_bits(pools, library):
    scenario = Scenario(tokens=(40, 3, 29), experts_per_rank=4, hidden=64, topk=3, routing="one-expert")
    assert run_granting(pools, 2, library, 2, run_overlapped, scenario, 6)[0] > 2


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
def test_a_rank_that_fails_before_it_grants_is_named(pools, library, cores):
    seen = pools.run(2, granting, leave_in_the_middle, library, cores, Step.COUNTS)
    assert "rank 1 failed" in seen[0]


def wait_for_a_grant(rank: Rank, library: str, cores: int) -> str:
    """Rank 1 grants nothing until rank 0 has given up; returns what that one says."""
    with (
        on_model(library, cores) if rank.rank == 0 else nullcontext(),
        open_exchange("windows", rank, SCENARIO, timeout_s=VAIN_S, counts="grants") as exchange,
    ):
        dist.barrier(rank.group)
        if rank.rank == 0:
            with pytest.raises(PeerTimeout) as caught:
                dispatch(rank, exchange)
            dist.barrier(rank.group)
            return str(caught.value)
        exchange.watch_steps(lambda reached: dist.barrier(rank.group) if reached == Step.COUNTS else None)
        with pytest.raises(SessionPoisoned):
            dispatch(rank, exchange)
        return ""


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
def test_a_rank_that_grants_nothing_is_named(pools, library, cores):
    text = pools.run(2, wait_for_a_grant, library, cores)[0]
    assert "rank 1 did not answer" in text
    assert "counts" in text


WORD = EPOCH << 16 | Kind.DECODE
PATIENT = plan_window(msgspec.structs.replace(GRANTING.parameters, timeout_s=60.0))


def be_granted(rank: Rank, library: str, cores: int, begin: int, off: int) -> tuple:  # noqa: ARG001 - a program
    """What is said of a grant whose rows for the second expert begin there."""
    with on_model(library, cores), pytest.raises(Corruption) as caught:
        dispatch_with(Grant((WORD, WORD), 2, [0, begin, 0, 0, 0, 0], off), PATIENT)
    return caught.value.region, caught.value.rank, caught.value.value


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
def test_a_place_outside_the_window_is_named(pools, library, cores):
    outside = PATIENT.capacity
    assert pools.run(1, be_granted, library, cores, outside, 0) == [("grants", 1, outside)]


@pytest.mark.parametrize("cores", [1, 4], ids=lambda cores: f"{cores}cores")
def test_a_grant_of_another_sum_is_named(pools, library, cores):
    assert pools.run(1, be_granted, library, cores, 1, 1) == [("grants", 1, 2)]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(grants.filter(lambda grant: min(grant.words) >> 16 >= EPOCH))
def test_any_grant_that_has_come_is_one_or_named(library, grant):
    with on_model(library, 2):
        require_granted_or_named(grant, PATIENT)
