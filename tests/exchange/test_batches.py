"""A token's result has the same bits whatever else is in the batch: other tokens, other ranks, another order.

This is about placement and combine; the experts here compute every row by itself. What real products do is measured in
docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows

from .bits import require_same_bits
from .pool import Rank
from .reference import scale_by_expert
from .rounds import window_bytes_for
from .scenario import Scenario
from .surface import PHASES, open_exchange

TOKENS = 24
SCENARIO = Scenario(tokens=(TOKENS,), experts_per_rank=4, topk=4, hidden=80, routing="sparse", weights="signed")


BATCHES = {
    "all": list(range(TOKENS)),
    "none": [],
    "one": [7],
    "the-last": [TOKENS - 1],
    "every-other": list(range(0, TOKENS, 2)),
    "backwards": list(reversed(range(TOKENS))),
    "shuffled": [(5 * token + 3) % TOKENS for token in range(TOKENS)],
    "one-many-times": [5] * TOKENS,
}
"""Which of its tokens a rank brings, in which order."""


def compute(rows: ExpertRows, rank: Rank) -> None:
    total = int(rows.counts.sum())
    received = rows.rows[:total]
    if rows.scales is not None:
        received = (received.float() * rows.scales[:total, None]).to(rows.out.dtype)
    rows.out[:total] = scale_by_expert(received, rows.counts, rank.rank * len(rows.counts))


def run_batches(rank: Rank, quant: str | None) -> None:
    mine = SCENARIO.inputs(rank.size)[rank.rank]

    def result(exchange: Exchange, chosen: list[int], phase: str) -> Tensor:
        batch = (tensor[chosen] for tensor in mine)
        return exchange.run(*batch, lambda rows: compute(rows, rank), phase=phase)

    with open_exchange("windows", rank, SCENARIO, quant=quant) as exchange:
        alone = torch.empty_like(mine.x)
        for turn in range(rank.size):
            for token in range(TOKENS):
                found = result(exchange, [token] if turn == rank.rank else [], "decode")
                if turn == rank.rank:
                    alone[token] = found[0]
        require_batches(rank, lambda chosen, phase: result(exchange, chosen, phase), PHASES, alone)

    small = window_bytes_for(rank.size, SCENARIO, tokens=3)
    with open_exchange("windows", rank, SCENARIO, quant=quant, window_bytes=small) as exchange:
        require_batches(rank, lambda chosen, phase: result(exchange, chosen, phase), ("prefill",), alone)


def require_batches(
    rank: Rank, result: Callable[[list[int], str], Tensor], phases: Sequence[str], alone: Tensor
) -> None:
    """Every batch gives the results `alone` [tokens, hidden]; no two ranks bring the same one at a time."""
    named = list(BATCHES.items())
    for number in range(len(named)):
        name, chosen = named[(number + rank.rank) % len(named)]
        for phase in phases:
            require_same_bits(result(chosen, phase), alone[chosen], f"{name} in {phase}")


@pytest.mark.parametrize("quant", [None, "int8"], ids=["bf16", "int8"])
def test_a_token_has_the_same_bits_in_every_batch(pools, quant):
    pools.run(3, run_batches, quant)
