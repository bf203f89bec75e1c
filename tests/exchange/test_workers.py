"""Large payloads are divided among threads, and rounds overlap with the experts; neither changes a bit."""

from __future__ import annotations

from ctypes import CDLL, c_uint32, c_void_p
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.errors import PeerLost
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native.library import own_library

from . import reference
from .bits import require_same_bits, require_same_values
from .harmed_ranks import require_poisoned
from .pool import Rank
from .reference import scale_by_expert
from .rounds import window_bytes_for
from .scenario import Routing, Scenario
from .surface import compute, open_exchange, require_rows

LARGE = Scenario(tokens=(200, 0, 170), experts_per_rank=4, hidden=1024, topk=4, routing="sparse")
"""More than a megabyte per rank that has tokens: enough for threads to be started."""


def run_with_workers(rank: Rank, scenario: Scenario, workers: int) -> None:
    inputs = scenario.inputs(rank.size)
    expected = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_expert)
    with open_exchange("windows", rank, scenario, workers=workers) as exchange:
        for phase in ("decode", "prefill"):
            rows = exchange.dispatch(*inputs[rank.rank], phase=phase)
            require_rows(rows, expected.rows[rank.rank], phase)
            compute(rows, scale_by_expert, rank)
            require_same_values(exchange.combine(rows.out, rows), expected.combined[rank.rank], phase)


@pytest.mark.parametrize("routing", ["sparse", "one-expert", "hot-rank", "nothing"])
@pytest.mark.parametrize("workers", [1, 2, 5], ids=lambda workers: f"{workers}workers")
def test_workers_place_and_reduce_the_same_bits(pools, workers: int, routing: Routing) -> None:
    pools.run(3, run_with_workers, LARGE._replace(routing=routing), workers)


def run_overlapped(rank: Rank, scenario: Scenario, window_tokens: int) -> int:
    inputs = scenario.inputs(rank.size)
    expected = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_expert).combined[rank.rank]
    rounds = 0

    def experts(rows: ExpertRows) -> None:
        nonlocal rounds
        rounds += 1
        compute(rows, scale_by_expert, rank)

    window_bytes = window_bytes_for(rank.size, scenario, tokens=window_tokens)
    with open_exchange("windows", rank, scenario, workers=2, window_bytes=window_bytes) as exchange:
        for _ in range(3):
            combined = exchange.run(*inputs[rank.rank], experts, phase="prefill")
            require_same_values(combined, expected, "overlapped rounds")
            # The whole window is there again for a schedule that takes all of it.
            few = tuple(tensor[:1] for tensor in inputs[rank.rank])
            rows = exchange.dispatch(*few)
            exchange.combine(rows.out.zero_(), rows)
    return rounds // 3


@pytest.mark.parametrize("routing", ["uniform", "hot-rank", "one-expert"])
@pytest.mark.parametrize("ranks", [2, 3], ids=lambda ranks: f"{ranks}ranks")
def test_overlapped_rounds_give_the_bits_of_one_round(pools, ranks: int, routing: Routing) -> None:
    scenario = Scenario(tokens=(40, 3, 29), experts_per_rank=4, hidden=64, topk=3, routing=routing)
    rounds = pools.run(ranks, run_overlapped, scenario, 6)
    assert len(set(rounds)) == 1
    assert rounds[0] > 2


def fail_while_overlapping(rank: Rank) -> None:
    scenario = Scenario(tokens=(40, 30, 29), experts_per_rank=4, hidden=64, topk=3)
    calls = 0

    def experts(rows: ExpertRows) -> None:
        nonlocal calls
        calls += 1
        if rank.rank == 1 and calls == 2:
            raise ArithmeticError("no such expert")
        compute(rows, scale_by_expert, rank)

    exchange = open_exchange(
        "windows", rank, scenario, workers=2, window_bytes=window_bytes_for(rank.size, scenario, tokens=6)
    )
    with pytest.raises(ArithmeticError if rank.rank == 1 else PeerLost):
        exchange.run(*scenario.inputs(rank.size)[rank.rank], experts, phase="prefill")
    require_poisoned(exchange, rank)


def test_a_failure_while_the_next_round_is_placed_reaches_everyone(fresh_pool) -> None:
    fresh_pool(3).run(fail_while_overlapping)


def run_beside_a_live_handle(rank: Rank, workers: int) -> int:
    scenario = Scenario(tokens=(40, 3, 29), experts_per_rank=4, hidden=512, topk=3)
    inputs = scenario.inputs(rank.size)
    expected = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_expert)
    few = Scenario(tokens=(3, 2, 1), experts_per_rank=4, hidden=512, topk=3).inputs(rank.size)[rank.rank]
    window_bytes = window_bytes_for(rank.size, scenario, tokens=4)
    rounds = 0

    def experts(round_rows: ExpertRows) -> None:
        nonlocal rounds
        rounds += 1
        compute(round_rows, scale_by_expert, rank)

    with open_exchange("windows", rank, scenario, workers=workers, slots=2, window_bytes=2 * window_bytes) as exchange:
        rows = exchange.dispatch(*few)
        compute(rows, scale_by_expert, rank)
        first = exchange.combine(rows.out, rows)
        combined = exchange.run(*inputs[rank.rank], experts, phase="prefill")
        require_same_values(combined, expected.combined[rank.rank], "rounds")
        require_same_bits(exchange.combine(rows.out, rows), first, "the handle of the other slot")
    return rounds


@pytest.mark.parametrize("workers", [1, 2], ids=["in-turn", "overlapped"])
def test_rounds_stay_in_one_slot_and_leave_the_handle_in_the_other_alone(pools, workers: int) -> None:
    rounds = pools.run(3, run_beside_a_live_handle, workers)
    assert rounds[0] > 1


def cut_segments(positions: torch.Tensor, count: int) -> list[int]:
    """What workers get: bounds of `count` ranges of tokens; positions int64 [tokens, topk], -1 = none."""
    bounds = (c_uint32 * (count + 1))()
    tokens, topk = positions.shape
    library = CDLL(own_library("cpu"))
    library.exchange_cut_segments(c_void_p(positions.contiguous().data_ptr()), tokens, topk, count, bounds)
    return list(bounds)


@given(
    tokens=st.integers(0, 300),
    topk=st.integers(1, 8),
    count=st.integers(1, 16),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_segments_cover_every_token_once_and_move_equally_many_rows(tokens, topk, count, density, seed):
    generator = torch.Generator().manual_seed(seed)
    routed = torch.rand(tokens, topk, generator=generator) < density
    bounds = cut_segments(torch.where(routed, 0, -1), count)
    assert bounds[0] == 0
    assert bounds[-1] == tokens
    assert bounds == sorted(bounds)
    rows = [int(routed[begin:end].sum()) for begin, end in pairwise(bounds)]
    assert max(rows) - min(rows) <= 2 * topk


def test_segments_of_a_large_chunk_with_one_hot_expert_differ_by_less_than_a_tenth():
    ids = torch.zeros(4096, 8, dtype=torch.int64)
    ids[::3, 4:] = -1
    bounds = cut_segments(ids, 48)
    rows = [int((ids[begin:end] >= 0).sum()) for begin, end in pairwise(bounds)]
    assert max(rows) <= 1.1 * min(rows)


def everything_to_one_expert(rank: Rank) -> int:
    tokens, hidden, topk, experts = 16384, 256, 8, 64
    generator = torch.Generator().manual_seed(rank.rank)
    x = torch.randn(tokens, hidden, generator=generator).to(torch.bfloat16)
    ids = torch.full((tokens, topk), 5)
    weights = torch.full((tokens, topk), 0.125)
    rounds = 0

    def experts_copy(rows: ExpertRows) -> None:
        nonlocal rounds
        rounds += 1
        total = int(rows.counts.sum())
        rows.out[:total] = rows.rows[:total]

    scenario = Scenario(tokens=(tokens,), experts_per_rank=experts // rank.size, hidden=hidden, topk=topk)
    with open_exchange("windows", rank, scenario, window_bytes=64 << 20) as exchange:
        # Eight eighths of a row are the row.
        require_same_bits(exchange.run(x, ids, weights, experts_copy, phase="prefill"), x, "everything to one expert")
    return rounds


def test_any_number_of_tokens_to_one_expert_goes_through_a_small_window(pools) -> None:
    rounds = pools.run(2, everything_to_one_expert, deadline_s=120.0)
    assert rounds[0] > 1
