"""An exchange counts what it did, and needs no more of the machine than start-up demands."""

from __future__ import annotations

import os
import resource
from contextlib import ExitStack
from typing import NamedTuple

import pytest
import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.observation import Histogram, PhaseCounts, rows_by_rank
from sglang_ascend_moe.native.codes import Kind
from sglang_ascend_moe.serving.machine_limits import descriptors_needed

from .pool import Rank
from .reference import scale_by_expert
from .rounds import window_bytes_for
from .scenario import Scenario
from .surface import compute, open_exchange

CALLS = 3
SCENARIO = Scenario(hidden=512, tokens=(5, 0, 8, 3), routing="last-expert-only", topk=2)


def test_rows_by_rank_are_the_columns_of_its_experts():
    matrix = torch.tensor([[1, 2, 3, 4, 5, 6], [10, 20, 30, 40, 50, 60], [0, 0, 0, 0, 0, 7]], dtype=torch.int32)
    assert rows_by_rank(matrix) == [33, 77, 128]


class Observed(NamedTuple):
    """What one rank counted in CALLS calls of a phase, and how often its experts were called."""

    counts: PhaseCounts
    histograms: dict[str, Histogram]
    rounds: int


def observe(rank: Rank, implementation: str, phase: str, options: dict[str, object]) -> Observed:
    rounds = 0

    def experts(rows) -> None:
        nonlocal rounds
        rounds += 1
        compute(rows, scale_by_expert, rank)

    with open_exchange(implementation, rank, SCENARIO, **options) as exchange:
        exchange.observation.counters.measures_imbalance = True
        for _ in range(CALLS):
            exchange.run(*SCENARIO.inputs(rank.size)[rank.rank], experts, phase=phase)
        kinds = {"decode": Kind.DECODE, "prefill": Kind.PREFILL}
        (other,) = set(kinds) - {phase}
        unused = exchange.observation.phases[kinds[other]]
        if unused != PhaseCounts():
            raise AssertionError(f"{phase} was counted as {other}: {unused}")
        if implementation == "windows" and exchange.epochs != [exchange.epoch] * rank.size:
            raise AssertionError(f"{exchange.epochs} are not everyone's {exchange.epoch}")
        observation, kind = exchange.observation, kinds[phase]
        return Observed(observation.phases[kind], observation.histograms(kind), rounds)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_every_rank_counts_what_it_did(pools, implementation, ranks, phase):
    tokens = SCENARIO.tokens_of(ranks)
    rows = sum(tokens) * SCENARIO.topk
    for rank, (counts, _, rounds) in enumerate(pools.run(ranks, observe, implementation, phase, {})):
        assert (counts.calls, counts.rounds, rounds) == (CALLS, CALLS, CALLS)
        assert counts.tokens == CALLS * tokens[rank]
        assert counts.rows == (CALLS * rows if rank == ranks - 1 else 0)
        assert counts.largest_rows == CALLS * rows
        assert min(counts.dispatch_ns, counts.combine_ns) > 0


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_every_call_is_in_the_histograms(pools, implementation, ranks, phase):
    over_windows = implementation == "windows"
    for counts, histograms, _ in pools.run(ranks, observe, implementation, phase, {}):
        of_calls = {"rounds": CALLS if over_windows and phase == "prefill" else 0, "wait_seconds": CALLS * over_windows}
        for name, (bounds, numbers, _) in histograms.items():
            assert sorted(set(bounds)) == bounds
            assert len(numbers) == len(bounds) + 1
            assert sum(numbers) == of_calls.get(name, CALLS), name
        assert histograms["rows"].sum == counts.rows
        # Every row goes to one rank.
        assert histograms["imbalance"].sum == CALLS * ranks
        assert histograms["combine_seconds"].sum == pytest.approx(counts.combine_ns * 1e-9)
        if phase == "decode":
            assert histograms["dispatch_seconds"].sum == pytest.approx(counts.dispatch_ns * 1e-9)


def test_a_value_is_counted_at_the_first_bound_that_it_does_not_exceed(pools):
    [observed] = pools.run(1, observe, "windows", "decode", {})
    bounds, numbers, _ = observed.histograms["rows"]
    rows = observed.counts.rows // CALLS
    place = next(number for number, bound in enumerate(bounds) if rows <= bound)
    assert numbers[place] == CALLS


@pytest.mark.parametrize("workers", [1, 2], ids=["in-turn", "overlapped"])
def test_every_round_is_counted(pools, workers):
    ranks = 2
    options = {"window_bytes": window_bytes_for(ranks, SCENARIO, tokens=2), "workers": workers}
    found = pools.run(ranks, observe, "windows", "prefill", options)
    for rank, (counts, histograms, rounds) in enumerate(found):
        assert counts.rounds == rounds > CALLS
        assert histograms["rounds"].sum == rounds
        assert (counts.calls, counts.tokens) == (CALLS, CALLS * SCENARIO.tokens_of(ranks)[rank])
    assert sum(observed.counts.rows for observed in found) == CALLS * sum(SCENARIO.tokens_of(ranks)) * SCENARIO.topk


def open_within(rank: Rank, exchanges: int) -> int:
    """Opens as many exchanges with no more descriptors than are said to be needed; the number left over at the end."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = descriptors_needed(rank.size, exchanges)
    allowed = len(os.listdir("/proc/self/fd")) - 1 + needed
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, before[1]))
    try:
        with ExitStack() as opened:
            for _ in range(exchanges):
                opened.enter_context(open_exchange("windows", rank, SCENARIO))
            return allowed - (len(os.listdir("/proc/self/fd")) - 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("exchanges", [1, 2])
def test_an_exchange_needs_no_more_descriptors_than_start_up_demands(fresh_pool, ranks, exchanges):
    left = fresh_pool(ranks).run(open_within, exchanges)
    # The demand is no exaggeration: what is left was needed while the last exchange was opened, or watches nobody.
    assert max(left) <= 2 * ranks + 1 + exchanges


def fail_at_file_size(rank: Rank) -> str:
    total = Exchange.memory(ranks=rank.size, **SCENARIO.options(rank.size)).total
    resource.setrlimit(resource.RLIMIT_FSIZE, (total - 1, resource.RLIM_INFINITY))
    with pytest.raises(Unsupported) as refusal:
        open_exchange("windows", rank, SCENARIO)
    resource.setrlimit(resource.RLIMIT_FSIZE, (total, resource.RLIM_INFINITY))
    open_exchange("windows", rank, SCENARIO).close()
    return str(refusal.value)


def test_a_window_that_the_system_refuses_is_an_error_of_the_package(fresh_pool):
    for message in fresh_pool(2).run(fail_at_file_size):
        assert "cannot be made" in message
