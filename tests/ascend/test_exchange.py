"""The Ascend kernels, executed on the host model, under the tests of the exchange: every bit, every refusal.

Whatever breaks a rule of the model on the way fails the test as well. No NPU has run these kernels.
"""

from __future__ import annotations

import pytest
import torch

from tests.exchange.pool import Rank
from tests.exchange.scenario import Scenario
from tests.exchange.schedules.test_rounds import SCENARIOS as ROUNDS
from tests.exchange.schedules.test_rounds import run_in_rounds
from tests.exchange.schedules.test_sequence import alternate_schedules
from tests.exchange.surface import PHASES, open_exchange
from tests.exchange.test_bit_exact import SCENARIOS, exchange_in_every_schedule, exchange_with_distinct_topk
from tests.exchange.test_handles import combine_again_and_again, cross_epochs, hold_two_handles
from tests.exchange.test_joint_refusals import disagree, overfill_window, refuse_broken_promise, refuse_one_rank
from tests.exchange.test_refusal_sequences import mix_refusals
from tests.exchange.test_workers import run_overlapped

from .host_model import on_mixed

RANKS_AND_CORES = [(2, 1), (2, 2), (2, 8), (4, 1), (4, 2), (4, 8)]


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
@pytest.mark.parametrize(("ranks", "cores"), [(2, 8), (4, 2)], ids=["2ranks-8cores", "4ranks-2cores"])
def test_kernels_equal_the_reference_to_the_bit(pools, library, ranks, cores, scenario):
    pools.run_on(ranks, library, cores, exchange_in_every_schedule, "windows", scenario)


SPLITS = {
    "fewer-pairs-than-cores": Scenario(tokens=(1, 0), topk=3),
    "pairs-that-cores-cannot-share-evenly": Scenario(tokens=(7, 13), topk=5, routing="sparse"),
    "rows-that-cores-share": Scenario(hidden=16 * 37, topk=5, tokens=(7, 3), routing="sparse"),
    "one-expert-filled-by-all-cores": Scenario(tokens=(29, 17), topk=4, routing="one-expert"),
    "experts-that-fill-no-count-unit": Scenario(experts_per_rank=11, topk=4, tokens=(9, 3)),
    "rows-longer-than-a-tile": Scenario(hidden=8192 + 48, topk=2, tokens=(3, 2)),
    "rows-of-half-a-cache-line": Scenario(hidden=16, topk=8, tokens=(31, 8)),
    "more-pairs-than-a-piece": Scenario(tokens=(400, 150), topk=8, experts_per_rank=8, routing="distinct"),
}


@pytest.mark.parametrize("scenario", SPLITS.values(), ids=SPLITS.keys())
@pytest.mark.parametrize(("ranks", "cores"), RANKS_AND_CORES, ids=lambda number: str(number))
def test_any_division_over_cores_gives_the_same_bits(pools, library, ranks, cores, scenario):
    pools.run_on(ranks, library, cores, exchange_in_every_schedule, "windows", scenario)


def tell_counts(rank: Rank, scenario: Scenario) -> None:
    given = scenario.inputs(rank.size)
    own = slice(rank.rank * scenario.experts_per_rank, (rank.rank + 1) * scenario.experts_per_rank)
    counts = [one.topk_ids[one.topk_ids >= 0].bincount(minlength=scenario.num_experts(rank.size)) for one in given]
    with open_exchange("windows", rank, scenario) as exchange:
        for phase in PHASES:
            exchange.dispatch(*given[rank.rank], phase=phase)
            assert exchange.counts_matrix.tolist() == torch.stack(counts)[:, own].tolist()


@pytest.mark.parametrize("name", ["experts-that-fill-no-count-unit", "more-pairs-than-a-piece"])
@pytest.mark.parametrize(("ranks", "cores"), [(2, 8), (4, 1)], ids=lambda number: str(number))
def test_every_rank_is_told_how_many_rows_of_each_come_from_where(pools, library, ranks, cores, name):
    pools.run_on(ranks, library, cores, tell_counts, SPLITS[name])


@pytest.mark.parametrize("name", ["bf16-int64", "hidden-7168", "top8", "no-token-on-some-ranks", "special-rows-bf16"])
def test_ranks_with_host_kernels_and_ranks_with_ascend_kernels_work_together(pools, library, name):
    pools.run(3, on_mixed, library, 3, exchange_in_every_schedule, "windows", SCENARIOS[name])


@pytest.mark.parametrize("name", ["even", "uneven", "all-to-one-expert", "hot-rank", "special-rows", "fp32"])
def test_many_rounds_equal_the_reference_to_the_bit(pools, library, name):
    rounds = pools.run_on(2, library, 2, run_in_rounds, ROUNDS[name], 2)
    assert len(set(rounds)) == 1
    assert rounds[0] > 1


@pytest.mark.parametrize(("ranks", "calls"), [(2, 300), (4, 60)], ids=["2ranks", "4ranks"])
def test_calls_that_alternate_schedules(pools, library, ranks, calls):
    pools.run_on(ranks, library, 2, alternate_schedules, "windows", calls, 1)


@pytest.mark.parametrize("routing", ["hot-rank", "one-expert"])
def test_rounds_that_overlap_in_half_windows_give_the_same_bits(pools, library, routing):
    scenario = Scenario(tokens=(40, 3, 29), experts_per_rank=4, hidden=64, topk=3, routing=routing)
    assert pools.run_on(2, library, 2, run_overlapped, scenario, 6)[0] > 2


@pytest.mark.parametrize("routing", ["distinct", "sparse-distinct"])
def test_distinct_topk_fits_its_smaller_window(pools, library, routing):
    pools.run_on(2, library, 2, exchange_with_distinct_topk, routing)


@pytest.mark.parametrize("first_epoch", [2**16 - 3, 2**32 - 3], ids=["2**16", "2**32"])
def test_epochs_cross_powers_of_two(pools, library, first_epoch):
    pools.run_on(2, library, 2, cross_epochs, first_epoch)


def test_a_handle_is_combined_again_and_again(pools, library):
    pools.run_on(3, library, 2, combine_again_and_again, "windows")


def test_two_live_handles_are_combined_in_any_order(pools, library):
    pools.run_on(2, library, 2, hold_two_handles, "windows", (1, 0))


@pytest.mark.parametrize("name", ["hidden", "id-minus-two", "id-past-the-end", "id-far-out"])
def test_bad_input_on_one_rank_is_refused_on_every_rank(pools, library, name):
    pools.run_on(3, library, 2, refuse_one_rank, "windows", name, "dispatch-decode")


def test_a_repeated_expert_is_refused_where_distinct_topk_was_promised(pools, library):
    pools.run_on(2, library, 2, refuse_broken_promise, "windows", "dispatch-decode")


def test_decode_against_prefill_is_a_mismatch_on_every_rank(pools, library):
    pools.run_on(3, library, 2, disagree, "windows", "dispatch-decode", "dispatch-prefill")


def test_rows_that_do_not_fit_the_window_are_refused_on_every_rank(pools, library):
    pools.run_on(2, library, 2, overfill_window, "dispatch-decode")


def test_refusals_and_calls_in_any_order(pools, library):
    pools.run_on(3, library, 2, mix_refusals, "windows", 60)
