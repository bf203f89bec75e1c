"""Normal calls against what DeepEP says of them, in any number of rounds."""

from __future__ import annotations

import pytest
import torch

from tests.exchange.bits import require_same_bits, require_same_values
from tests.exchange.pool import Rank

from .measures import difference
from .normal_calls import ALIGNMENT, SCENARIO, SPARE_TOKENS, Case, Expected, Observed, biases, observe, open_buffer


def require_rows(observed: list[Observed], expected: Expected) -> None:
    for rank, seen in enumerate(observed):
        require_same_bits(seen.rows, expected.rows[rank], f"rows of rank {rank}")
        require_same_bits(seen.again, expected.rows[rank], f"rows by the handle, rank {rank}")
        arriving = len(seen.rows)
        assert len(seen.worst_rows) == len(seen.worst_ids) == len(seen.worst_weights) == arriving + SPARE_TOKENS
        require_same_bits(seen.worst_rows[:arriving], expected.rows[rank], f"rows of the worst case, rank {rank}")


def require_ids(observed: list[Observed], expected: Expected) -> None:
    for rank, seen in enumerate(observed):
        assert seen.ids.tolist() == expected.ids(rank)
        assert seen.worst_ids.tolist() == expected.ids(rank) + [[-1] * seen.ids.shape[1]] * SPARE_TOKENS


def require_weights(observed: list[Observed], expected: Expected) -> None:
    for rank, seen in enumerate(observed):
        assert seen.weights.tolist() == expected.weights(rank)
        assert not seen.weights[seen.ids < 0].any()
        assert seen.worst_weights.tolist() == expected.weights(rank) + [[0.0] * seen.ids.shape[1]] * SPARE_TOKENS


def require_counts(observed: list[Observed], expected: Expected) -> None:
    for rank, seen in enumerate(observed):
        counts = expected.tokens_per_expert(rank)
        assert seen.tokens_per_expert == counts
        assert seen.aligned == [-(-count // ALIGNMENT) * ALIGNMENT for count in counts]
        assert seen.worst_tokens_per_expert == []


def require_handles(observed: list[Observed], expected: Expected) -> None:
    for rank, seen in enumerate(observed):
        origins = expected.origins[rank]
        assert seen.source_tokens.tolist() == [token for _, token in origins]
        sources = [source for source, _ in origins]
        assert seen.prefix[:, rank].tolist() == [
            sum(each <= source for each in sources) for source in range(len(observed))
        ]
        for destination, arrived in enumerate(expected.origins):
            tokens = [token for source, token in arrived if source == rank]
            heads = seen.heads[:, destination].tolist()
            assert heads == [tokens.index(token) if token in tokens else -1 for token in range(len(heads))]


def require_sums(observed: list[Observed], expected: Expected) -> None:
    for rank, seen in enumerate(observed):
        wanted = expected.combined(rank)
        require_same_values(seen.combined, wanted, f"sums of rank {rank}")
        require_same_values(seen.combined_weights, expected.combined_weights(rank), f"weights of rank {rank}")
        one, other = biases(*wanted.shape)
        biased = (wanted.float() + one.float() + other.float()).to(torch.bfloat16)
        require_same_values(seen.biased, biased, f"sums with bias of rank {rank}")


def require_all(observed: list[Observed], expected: Expected) -> None:
    for require in (require_rows, require_ids, require_weights, require_counts, require_handles, require_sums):
        require(observed, expected)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
@pytest.mark.parametrize("round_tokens", [64, 4], ids=["one-round", "three-rounds"])
def test_rows_ids_weights_counts_and_sums_are_exact(pools, ranks, round_tokens, fp8):
    case = Case(fp8=fp8, round_tokens=round_tokens)
    require_all(pools.run(ranks, observe, case), Expected(case, ranks))


SHAPES = {
    "one-token": {"tokens": (1, 0)},
    "no-tokens": {"tokens": (0, 0)},
    "nothing-routed": {"routing": "nothing"},
    "experts-repeated": {"routing": "repeated-in-token"},
    "one-expert-per-rank": {"experts_per_rank": 1},
    "int32-ids": {"id_dtype": "int32"},
    "hidden-7168": {"hidden": 7168, "tokens": (3, 2)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_of_a_call(pools, shape):
    case = Case(SCENARIO._replace(**SHAPES[shape]), fp8=True)
    require_all(pools.run(2, observe, case), Expected(case, 2))


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("hidden", [512, 2560, 7168])
def test_many_shapes(pools, ranks, hidden, seed):
    scenario = SCENARIO._replace(hidden=hidden, seed=seed, tokens=(40, 0, 33, 9, 1), topk=5, experts_per_rank=4)
    case = Case(scenario, fp8=bool(seed % 2), round_tokens=7 * (seed + 1))
    require_all(pools.run(ranks, observe, case), Expected(case, ranks))


def test_weights_kept_where_ids_are_minus_one_are_noticed(pools):
    expected = Expected(Case(), 2)
    require_weights(pools.run(2, observe, Case()), expected)
    mistaken = pools.run(2, observe, Case(), "weights-kept-at-minus-one")
    with pytest.raises(AssertionError):
        require_weights(mistaken, expected)


def give_back(rank: Rank) -> float:
    """DeepEP's difference of rows that come back from every rank unchanged, without top-k arguments."""
    case = Case(SCENARIO._replace(tokens=(40, 33)))
    x, ids, _ = case.scenario.inputs(rank.size)[rank.rank]
    buffer = open_buffer(rank, case)
    per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, case.scenario.num_experts(rank.size))
    rows, no_ids, no_weights, listed, handle, _ = buffer.dispatch(
        x, num_tokens_per_rank=per_rank, is_token_in_rank=in_rank, num_tokens_per_expert=per_expert
    )
    assert (no_ids, no_weights, len(listed)) == (None, None, case.scenario.experts_per_rank)
    combined, _, _ = buffer.combine(rows, handle)
    buffer.destroy()
    sent = in_rank.sum(1, keepdim=True)
    back = torch.where(sent > 0, combined.float() / sent.clamp(min=1), x.float())
    assert float((back - x.float()).abs().max()) == 0
    return difference(back, x)


def test_rows_come_back_as_they_went(pools):
    assert max(pools.run(2, give_back)) < 5e-6
