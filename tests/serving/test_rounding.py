"""The rule for answers in bfloat16 tells arithmetic that is not that of the model, and nothing else."""

import random

import pytest

from sglang_ascend_moe.launch.comparison import Answer, Candidate
from tests.serving.rounding import distances, farther

POSITIONS = 400


def sample(seed: int, size: float = 0.04, changed_experts: float = 0.1) -> list[float]:
    """Distances as roundings make them, and in one of ten answers another expert."""
    draw = random.Random(seed)
    return sorted(
        abs(draw.gauss(0, size)) + (draw.expovariate(1.0) if draw.random() < changed_experts else 0)
        for _ in range(POSITIONS)
    )


@pytest.mark.parametrize("seed", range(20))
def test_another_sample_of_the_same_roundings_is_not_farther(seed):
    assert farther(sample(2 * seed), sample(2 * seed + 1)) == []


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "wrong", [pytest.param({"size": 0.07}, id="larger-roundings"), pytest.param({"changed_experts": 0.5}, id="experts")]
)
def test_what_is_not_rounded_alike_is_farther(seed, wrong):
    assert farther(sample(2 * seed, **wrong), sample(2 * seed + 1)) != []


def test_distances_are_those_of_positions_up_to_the_first_other_token():
    exact = Answer([1, 2, 3], [[Candidate(token, -0.5), Candidate(9, -1.0)] for token in (1, 2, 3)])
    found = Answer([1, 9, 3], [[Candidate(1, -0.75), Candidate(9, -1.0)], [Candidate(9, -0.5), Candidate(2, -1.0)], []])
    assert distances([exact], [found]) == [0.25, 0.5]
