"""Every variant delivers what it has to, and a variant that does not is noticed."""

from __future__ import annotations

from typing import Any

import pytest

from sglang_ascend_moe.launch.bench.cases import VARIANTS, Case
from sglang_ascend_moe.launch.bench.drawn_routing import make_batch, traffic
from sglang_ascend_moe.launch.bench.measure import Stopwatch, measure
from sglang_ascend_moe.launch.bench.records import OPS
from sglang_ascend_moe.launch.bench.shared_memory import Barrier
from sglang_ascend_moe.launch.bench.variant_opening import open_variants
from sglang_ascend_moe.launch.bench.variants.memcpy import block_sequence
from sglang_ascend_moe.launch.bench.variants.variant import Ranks
from tests.exchange.pool import Rank

from .shapes import case

# MPI needs mpirun: test_bench_command.py runs it.
IN_PROCESS = [name for name in VARIANTS if name not in ("mpi", "quantise-memcpy")]


def variants_of(shape: Case) -> list[str]:
    return [*IN_PROCESS, "quantise-memcpy"] if shape.dtype == "int8" else IN_PROCESS


def opened(rank: Rank, shape: Case, names: list[str]) -> tuple[Ranks, Any, Any, Any]:
    ranks = Ranks(rank.rank, rank.group, Barrier(rank.group), None)
    batch, sent = make_batch(shape, rank.rank), traffic(shape)
    return ranks, batch, sent, open_variants(names, {}, shape, ranks, batch, sent).variants


def problems(rank: Rank, shape: Case, names: list[str]) -> dict[str, str]:
    """What this rank finds wrong with each variant, with every way to write rows that it has."""
    ranks, batch, _, variants = opened(rank, shape, names)
    found = {}
    for name, variant in variants.items():
        for store in variant.stores or [None]:
            for op in OPS if store else ():
                variant.use(op, store)
            # Twice, because the second use of a buffer may find what the first has left.
            for _ in range(2):
                if (problem := variant.problem(shape, ranks, batch)) is not None:
                    found[f"{name} {store}"] = problem
        variant.close()
    assert list(variants) == names
    return found


SHAPES = {
    "bf16": case(),
    "int8": case(dtype="int8"),
    "prefill": case(phase="prefill", tokens=130),
    "one expert": case(routing="one-expert"),
    "zipf int8": case(routing="zipf", dtype="int8", tokens=33, hidden=96),
    "one token": case(tokens=1),
    "three ranks": case(ranks=3, experts=9),
    "several blocks": case(hidden=4096, tokens=70),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_variant_delivers_rows_and_sums_bit_for_bit(make_pool, shape: Case):
    assert make_pool(shape.ranks).run(problems, shape, variants_of(shape)) == [{}] * shape.ranks


def corrupted_problem(rank: Rank, shape: Case, name: str, op: str) -> str | None:
    """What is found if rank 1 delivers one wrong element."""
    ranks, batch, sent, variants = opened(rank, shape, [name])
    variant = variants[name]
    # What this rank brought itself: nobody else writes there afterwards, also not where there are no flags.
    last = int(sent[:, shape.experts // shape.ranks * rank.rank :].sum()) - 1
    dispatch, combine = variant.dispatch, variant.combine

    def wrong_dispatch(batch: Any) -> Any:
        handle = dispatch(batch)
        variant.arrived(handle).rows[last, 5] += 1
        return handle

    def wrong_combine(handle: Any) -> Any:
        combined = combine(handle)
        combined[3, 0] = -combined[3, 0]
        return combined

    if ranks.rank == 1 and op == "dispatch":
        variant.dispatch = wrong_dispatch
    if ranks.rank == 1 and op == "combine":
        variant.combine = wrong_combine
    return variant.problem(shape, ranks, batch)


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, dtype) for dtype in ("bf16", "int8") for name in variants_of(case(dtype=dtype))]
)
@pytest.mark.parametrize("op", OPS)
def test_one_wrong_element_is_found(make_pool, name: str, op: str, dtype: str):
    found = make_pool(2).run(corrupted_problem, case(dtype=dtype), name, op)
    assert found[1] is not None
    # A wrong row also makes wrong sums, wherever its token came from; a wrong sum is wrong for its rank only.
    assert op == "dispatch" or found[0] is None


def timed(rank: Rank, shape: Case, iterations: int, seconds: float) -> Any:
    ranks, batch, sent, variants = opened(rank, shape, IN_PROCESS)
    return measure(shape, ranks, variants, Stopwatch(shape, ranks, batch, sent), iterations, seconds)


@pytest.mark.parametrize(
    ("iterations", "seconds", "expected"), [(5, 60, 5), (1000, 0, 3)], ids=["by iterations", "by time"]
)
def test_all_ranks_report_the_same_times_of_as_many_iterations_as_wanted(
    make_pool, iterations: int, seconds: float, expected: int
):
    one, another = make_pool(2).run(timed, case(), iterations, seconds)
    assert one == another
    assert list(one.times) == IN_PROCESS
    assert {len(times[op]) for times in one.times.values() for op in OPS} == {expected}
    assert all(nanoseconds > 0 for times in one.times.values() for op in OPS for nanoseconds in times[op])


def test_memcpy_sends_every_token_as_often_as_an_exchange_in_blocks_that_stay_near():
    shape = case(hidden=4096, tokens=70, topk=3)
    sequence = block_sequence(shape)
    assert sorted(sequence) == sorted(list(range(70)) * 3)
    assert sequence[:96] == list(range(32)) * 3
    assert sequence[-18:] == list(range(64, 70)) * 3
