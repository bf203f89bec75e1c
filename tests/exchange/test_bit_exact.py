"""Dispatch and combine of both implementations against the reference, to the bit."""

from __future__ import annotations

import pytest
import torch

from . import reference
from .bits import require_same_values
from .pool import Rank
from .reference import RankInput, scale_by_expert, scale_by_place
from .scenario import DTYPES, ID_DTYPES, Scenario
from .surface import PHASES, compute, open_exchange, require_rows

SCENARIOS = {
    **{f"{dtype}-{ids}": Scenario(dtype=dtype, id_dtype=ids) for dtype in DTYPES for ids in ID_DTYPES},
    **{f"hidden-{hidden}": Scenario(hidden=hidden) for hidden in (16, 48, 512, 7168)},
    **{f"top{topk}": Scenario(topk=topk, routing="sparse") for topk in range(1, 9)},
    "top8-distinct": Scenario(topk=8, experts_per_rank=8, routing="distinct"),
    "one-expert-per-rank": Scenario(experts_per_rank=1),
    "many-experts-per-rank": Scenario(experts_per_rank=37, topk=4),
    "one-token": Scenario(tokens=(1,)),
    "no-token-on-some-ranks": Scenario(tokens=(0, 9)),
    "no-token-on-any-rank": Scenario(tokens=(0,)),
    "tokens-on-last-rank-only": Scenario(tokens=(0, 0, 0, 0, 0, 0, 0, 4), max_tokens=7),
    "uneven-tokens": Scenario(tokens=(1, 40, 2, 0, 17)),
    "minus-one-anywhere": Scenario(routing="sparse", topk=4, tokens=(11, 4)),
    "nothing-routed": Scenario(routing="nothing"),
    "all-to-one-expert": Scenario(routing="one-expert", topk=4),
    "all-to-the-last-expert": Scenario(routing="last-expert-only"),
    "hot-rank": Scenario(routing="hot-rank", topk=4, tokens=(24, 16)),
    "expert-repeated-in-token": Scenario(routing="repeated-in-token", topk=5),
    "equal-rows": Scenario(rows="constant", topk=3),
    "nan-in-unrouted-tokens": Scenario(rows="nan-where-unrouted", routing="sparse"),
    **{f"special-rows-{dtype}": Scenario(rows="special", dtype=dtype, topk=3, hidden=64) for dtype in DTYPES},
    "weights-softmax": Scenario(weights="softmax", topk=6),
    "weights-zero": Scenario(weights="zeros", rows="special"),
    **{f"weights-large-{dtype}": Scenario(weights="large", dtype=dtype, topk=4) for dtype in DTYPES},
    "weights-special": Scenario(weights="special", topk=4, routing="sparse", hidden=64),
}


def exchange_in_every_schedule(rank: Rank, implementation: str, scenario: Scenario) -> None:
    """Dispatch and combine in both phases, then the same through `run`, all on one exchange."""
    inputs = scenario.inputs(rank.size)
    require_match(rank, implementation, scenario, inputs, inputs[rank.rank])


def require_match(
    rank: Rank, implementation: str, scenario: Scenario, inputs: list[RankInput], mine: RankInput, **options: object
) -> None:
    """`mine` holds the values of `inputs[rank]`, perhaps laid out differently in memory."""
    by_place = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_place)
    by_expert = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_expert)
    with open_exchange(implementation, rank, scenario, **options) as exchange:
        for phase in PHASES:
            rows = exchange.dispatch(*mine, phase=phase)
            require_rows(rows, by_place.rows[rank.rank], phase)
            compute(rows, scale_by_place, rank)
            combined = exchange.combine(rows.out, rows)
            require_same_values(combined, by_place.combined[rank.rank], f"combine of {phase}")
        for phase in PHASES:
            combined = exchange.run(*mine, lambda rows: compute(rows, scale_by_expert, rank), phase=phase)
            require_same_values(combined, by_expert.combined[rank.rank], f"run of {phase}")


@pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=SCENARIOS.keys())
def test_exchange_equals_the_reference_to_the_bit(pools, implementation, ranks, scenario):
    pools.run(ranks, exchange_in_every_schedule, implementation, scenario)


def test_phase_is_decode_unless_said_otherwise(pools, implementation):
    pools.run(2, dispatch_without_phase, implementation)


def dispatch_without_phase(rank: Rank, implementation: str) -> None:
    scenario = Scenario()
    mine = scenario.inputs(rank.size)[rank.rank]
    with open_exchange(implementation, rank, scenario) as exchange:
        # Ranks that name the default and ranks that do not are in the same phase.
        if rank.rank == 0:
            rows = exchange.dispatch(*mine)
        else:
            rows = exchange.dispatch(*mine, phase="decode")
        exchange.combine(rows.out.zero_(), rows)


def transposed(given: RankInput) -> RankInput:
    return RankInput(*(tensor.t().contiguous().t() for tensor in given))


def every_other_row(given: RankInput) -> RankInput:
    return RankInput(*(tensor.repeat_interleave(2, dim=0)[::2] for tensor in given))


def every_other_column(given: RankInput) -> RankInput:
    return RankInput(*(tensor.repeat_interleave(2, dim=1)[:, ::2] for tensor in given))


def offset_in_storage(given: RankInput) -> RankInput:
    return RankInput(*(torch.cat([tensor[:1], tensor])[1:] for tensor in given))


def another_type(given: RankInput) -> RankInput:
    """Tensors that only Python can look at."""
    return RankInput(*(torch.nn.Parameter(tensor, requires_grad=False) for tensor in given))


STRIDES = {
    "transposed": transposed,
    "every-other-row": every_other_row,
    "every-other-column": every_other_column,
    "offset-in-storage": offset_in_storage,
    "subclass": another_type,
}


@pytest.mark.parametrize("stride", STRIDES)
def test_inputs_need_not_be_contiguous(pools, implementation, stride):
    pools.run(3, exchange_strided_inputs, implementation, stride)


def exchange_strided_inputs(rank: Rank, implementation: str, stride: str) -> None:
    scenario = Scenario(topk=3, routing="sparse")
    inputs = scenario.inputs(rank.size)
    require_match(rank, implementation, scenario, inputs, STRIDES[stride](inputs[rank.rank]))


def test_inputs_may_be_changed_once_dispatch_has_returned(pools, implementation):
    pools.run(3, overwrite_inputs_after_dispatch, implementation)


def overwrite_inputs_after_dispatch(rank: Rank, implementation: str) -> None:
    scenario = Scenario(topk=3)
    inputs = scenario.inputs(rank.size)
    expected = reference.exchange(inputs, scenario.num_experts(rank.size), scale_by_place)
    x, ids, weights = (tensor.clone() for tensor in inputs[rank.rank])
    with open_exchange(implementation, rank, scenario) as exchange:
        rows = exchange.dispatch(x, ids, weights)
        for tensor, value in ((x, torch.nan), (ids, -1), (weights, torch.nan)):
            tensor.fill_(value)
        compute(rows, scale_by_place, rank)
        combined = exchange.combine(rows.out, rows)
        require_same_values(combined, expected.combined[rank.rank], "combine")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=lambda dtype: f"{dtype}"[6:])
def test_weights_of_any_floating_dtype_are_taken_as_float32(pools, implementation, dtype):
    pools.run(2, exchange_with_weights_of, implementation, dtype)


def exchange_with_weights_of(rank: Rank, implementation: str, dtype: torch.dtype) -> None:
    scenario = Scenario(topk=4)
    inputs = scenario.inputs(rank.size)
    # Times a number that only float64 holds, so that those weights have to be rounded.
    weights = [given.topk_weights.double().mul(1 + 2.0**-30).to(dtype) for given in inputs]
    rounded = [given._replace(topk_weights=weight.float()) for given, weight in zip(inputs, weights, strict=True)]
    require_match(rank, implementation, scenario, rounded, inputs[rank.rank]._replace(topk_weights=weights[rank.rank]))


def test_a_large_batch_equals_the_reference_to_the_bit(pools, implementation):
    scenario = Scenario(tokens=(700, 513), experts_per_rank=32, hidden=1024, topk=8, routing="distinct")
    pools.run(2, exchange_in_every_schedule, implementation, scenario)


@pytest.mark.parametrize("routing", ["distinct", "sparse-distinct"])
def test_distinct_topk_holds_what_routers_without_repetition_need(pools, ranks, routing):
    pools.run(ranks, exchange_with_distinct_topk, routing)


def exchange_with_distinct_topk(rank: Rank, routing: str) -> None:
    scenario = Scenario(topk=6, experts_per_rank=4, routing="distinct", tokens=(9, 9, 3))
    inputs = scenario.inputs(rank.size)
    if routing == "sparse-distinct":
        inputs = [given._replace(topk_ids=given.topk_ids.masked_fill(given.topk_ids % 3 == 0, -1)) for given in inputs]
    require_match(rank, "windows", scenario, inputs, inputs[rank.rank], distinct_topk=True)


def test_number_of_ranks_and_implementation_do_not_change_a_bit(pools):
    results = {
        (ranks, implementation): b"".join(pools.run(ranks, run_a_share_of_the_batch, implementation))
        for ranks in (2, 3, 4, 8)
        for implementation in ("windows", "collective")
    }
    assert len(set(results.values())) == 1, {key: hash(value) for key, value in results.items()}


def run_a_share_of_the_batch(rank: Rank, implementation: str) -> bytes:
    """Each rank takes an equal share of the same 48 tokens and 24 experts."""
    batch = Scenario(tokens=(48,), experts_per_rank=24, topk=4, routing="sparse").inputs(1)[0]
    share = 48 // rank.size
    mine = RankInput(*(tensor[rank.rank * share :][:share] for tensor in batch))
    scenario = Scenario(tokens=(share,), experts_per_rank=24 // rank.size, topk=4)
    with open_exchange(implementation, rank, scenario) as exchange:
        combined = exchange.run(*mine, lambda rows: compute(rows, scale_by_expert, rank), phase="prefill")
    return combined.view(torch.int16).numpy().tobytes()


def test_fresh_processes_give_the_same_bits(fresh_pool, implementation):
    first, second = (fresh_pool(3).run(run_a_share_of_the_batch, implementation) for _ in range(2))
    assert first == second
