"""Refusals in a row and mixed with calls that work: nobody may take one call's records for another's.

After a refusal there is no combine that would keep a fast rank from announcing the next exchange before a slow one has
read this one, so these sequences are where ranks drift apart most.
"""

from __future__ import annotations

import random

import pytest
import torch

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, ProtocolMismatch, WindowTooSmall

from . import reference
from .bits import require_same_values
from .pool import Rank
from .reference import RankInput, scale_by_expert
from .rounds import window_bytes_for
from .scenario import Scenario
from .surface import PHASES, compute, open_exchange

SCENARIO = Scenario(tokens=(5, 3, 0, 8), max_tokens=8, topk=2, hidden=512)
ACTS = ("works", "runs", "bad-id", "bad-dtype", "two-culprits", "mismatch", "too-small")


def mix_refusals(rank: Rank, implementation: str, calls: int) -> dict[str, int]:
    """Every rank draws the same sequence. Returns how often each act was played."""
    draw = random.Random(rank.size)
    acts = ACTS if implementation == "windows" else ACTS[:-1]
    options = {"window_bytes": window_bytes_for(rank.size, SCENARIO, tokens=5)} if implementation == "windows" else {}
    inputs = SCENARIO.inputs(rank.size)
    expected = reference.exchange(inputs, SCENARIO.num_experts(rank.size), scale_by_expert).combined[rank.rank]
    played = dict.fromkeys(acts, 0)
    with open_exchange(implementation, rank, SCENARIO, **options) as exchange:
        for number in range(calls):
            act, phase, culprit = draw.choice(acts), draw.choice(PHASES), draw.randrange(rank.size)
            played[act] += 1
            what = f"call {number}, {act} in {phase} with rank {culprit}"
            try:
                play(exchange, act, phase, culprit, rank, inputs[rank.rank], expected)
            except AscendMoeError as error:
                raise AssertionError(f"{what}: {error}") from error
            except AssertionError as error:
                raise AssertionError(f"{what}: {error}") from error
    return played


def play(exchange, act: str, phase: str, culprit: int, rank: Rank, mine: RankInput, expected: torch.Tensor) -> None:
    guilty = rank.rank == culprit
    bad_id = RankInput(mine.x.new_zeros(3, SCENARIO.hidden), torch.full((3, 2), -7), torch.ones(3, 2))
    match act:
        case "works":
            rows = exchange.dispatch(*mine, phase=phase)
            compute(rows, scale_by_expert, rank)
            require_same_values(exchange.combine(rows.out, rows), expected, act)
        case "runs":
            combined = exchange.run(*mine, lambda rows: compute(rows, scale_by_expert, rank), phase="prefill")
            require_same_values(combined, expected, act)
        case "bad-id":
            given = SCENARIO._replace(tokens=(3,)).inputs(rank.size)[rank.rank]
            with pytest.raises(InvalidInput, match="-7"):
                exchange.dispatch(*(bad_id if guilty else given), phase=phase)
        case "bad-dtype":
            with pytest.raises(InvalidInput, match="float64"):
                exchange.dispatch(mine.x.double() if guilty else mine.x, *mine[1:], phase=phase)
        case "two-culprits":
            others = {culprit, (culprit + 1) % rank.size}
            with pytest.raises(InvalidInput):
                exchange.dispatch(*(bad_id if rank.rank in others else mine), phase=phase)
        case "mismatch":
            with pytest.raises(ProtocolMismatch):
                exchange.dispatch(*mine, phase="decode" if guilty else "prefill")
        case "too-small":
            full = SCENARIO._replace(tokens=(8,), routing="one-expert").inputs(rank.size)[rank.rank]
            with pytest.raises(WindowTooSmall):
                exchange.dispatch(*full, phase=phase)


def test_refusals_and_calls_in_any_order(pools, implementation, ranks):
    calls = 1500 if implementation == "windows" else 80
    played = pools.run(ranks, mix_refusals, implementation, calls)
    assert all(counts == played[0] for counts in played)
    assert all(played[0].values()), f"an act was never played: {played[0]}"
