"""Many exchanges of every kind, one after the other: the same bits at the end, and nothing that grows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from typing import NamedTuple, get_args

import pytest
import torch

from sglang_ascend_moe.errors import InvalidInput
from tests.exchange import reference
from tests.exchange.bits import bits
from tests.exchange.pool import Pool, Rank
from tests.exchange.reference import RankInput, scale_by_expert
from tests.exchange.rounds import window_bytes_for
from tests.exchange.scenario import Routing, Rows, Scenario
from tests.exchange.surface import PHASES, compute, open_exchange
from tests.soak.growth import Sample, report, sample

RANKS = 4
SAMPLES = 40
MOST_GROWTH = 256 << 10
"""Bytes of a rank by which its memory may differ between the middle of a run and its end."""
BASE = Scenario(hidden=64, topk=3, experts_per_rank=3, max_tokens=24, weights="softmax")
SHAPES: tuple[tuple[int, ...], ...] = ((5, 3, 8, 1), (0, 24, 0, 7), (24, 24, 24, 24), (1, 0, 0, 0), (2, 2, 2, 2))
# Without NaN, whose bits arithmetic leaves to the machine.
ROWS = tuple(rows for rows in get_args(Rows) if rows != "special")
REFUSED_INPUT = RankInput(
    torch.zeros(1, BASE.hidden, dtype=torch.bfloat16), torch.full((1, BASE.topk), 10**6), torch.zeros(1, BASE.topk)
)
REFUSED = 0.02
"""Of all calls, those in which one rank brings an id that no expert has."""


class Call(NamedTuple):
    """What one rank brings, and a hash of what it must get."""

    given: RankInput
    expected: bytes


def digest(result: torch.Tensor) -> bytes:
    return hashlib.blake2b(bits(result).numpy().tobytes(), digest_size=16).digest()


def calls_of(rank: Rank) -> Iterator[Call]:
    """Every shape with every kind of routing and of rows, in the same order on every rank."""
    for seed, (shape, routing, rows) in enumerate(product(SHAPES, get_args(Routing), ROWS)):
        scenario = BASE._replace(tokens=shape, routing=routing, rows=rows, seed=seed)
        inputs = scenario.inputs(rank.size)
        expected = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_expert)
        yield Call(inputs[rank.rank], digest(expected.combined[rank.rank]))


def soak(rank: Rank, total: int, seed: int) -> list[Sample]:
    """`total` calls, the same on every rank, on three exchanges by turns."""
    calls = list(calls_of(rank))
    chance = random.Random(seed)
    samples = []
    kinds = ({"slots": 2}, {"window_bytes": window_bytes_for(rank.size, BASE, tokens=5)}, {"verify": True})
    with ExitStack() as opened:
        exchanges = [opened.enter_context(open_exchange("windows", rank, BASE, **options)) for options in kinds]
        for number in range(total + 1):
            if number % (total // SAMPLES) == 0:
                samples.append(sample(number))
            call, exchange, phase = chance.choice(calls), chance.choice(exchanges), chance.choice(PHASES)
            whole = chance.random() < 0.5
            if exchange is exchanges[1]:
                # Only prefill's `run` takes the rounds that its window needs.
                whole, phase = True, "prefill"
            culprit = chance.randrange(rank.size) if chance.random() < REFUSED else None
            given = REFUSED_INPUT if culprit == rank.rank else call.given
            try:
                if whole:
                    result = exchange.run(*given, lambda rows: compute(rows, scale_by_expert, rank), phase=phase)
                else:
                    rows = exchange.dispatch(*given, phase=phase)
                    compute(rows, scale_by_expert, rank)
                    result = exchange.combine(rows.out, rows)
            except InvalidInput:
                if culprit is None:
                    raise
            else:
                if culprit is not None:
                    raise AssertionError(f"call {number}: an id that no expert has was not refused")
                if digest(result) != call.expected:
                    raise AssertionError(f"call {number}: other bits than the reference's ({phase}, {whole=})")
    return samples


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "total",
    [
        pytest.param(4_000, id="4000"),
        pytest.param(100_000, id="100000", marks=pytest.mark.nightly),
        pytest.param(1_000_000, id="1000000", marks=pytest.mark.nightly),
    ],
)
def test_mixed_exchanges_have_the_bits_of_the_reference_and_nothing_grows(request, total):
    pool = Pool(RANKS)
    try:
        by_rank = pool.run(soak, total, 0, deadline_s=3500.0)
    finally:
        pool.close()
    for rank, samples in enumerate(by_rank):
        report(request, f"rank {rank}", samples)
        middle, end = samples[len(samples) // 2], samples[-1]
        assert (end.descriptors, end.threads) == (middle.descriptors, middle.threads)
        assert end.memory - middle.memory < MOST_GROWTH
