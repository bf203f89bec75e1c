"""The model's clock: times follow from what is charged, never fall below what they wait for, and are the same again."""

from __future__ import annotations

import pytest

from tests.exchange.scenario import Scenario

from .cost_sheet import CORES, Shape
from .modelled_time import Clock, RankTimes
from .time_sheet import (
    EXPERTS,
    PAGE,
    PAPER,
    RANKS,
    TOKENS,
    Counted,
    constants_table,
    counts_row,
    modelled,
    page,
    timed_table,
    times_rows,
)

SMALL = Scenario(tokens=(16,), hidden=4096, topk=8, experts_per_rank=64, routing="distinct", rows="constant")


def run(clock: Clock, **constants: float) -> list[RankTimes]:
    """Dispatch and combine of all ranks."""
    with clock.with_constants(**constants):
        times = clock.run(SMALL, 4, 8)
    return [*times.dispatch, *times.combine]


def test_the_same_exchange_takes_the_same_time_again(clock):
    assert run(clock) == run(clock)


def test_no_launch_is_faster_than_what_its_cores_do(clock):
    start = next(one.value for one in clock.constants() if one.name == "kernel_start")
    for rank in run(clock):
        for core in rank.cores:
            assert core.ended >= start + max(core.busy_scalar, core.busy_vector, core.busy_loads, core.busy_stores)


@pytest.mark.parametrize("bandwidth", [0.16, 16, 160])
def test_no_exchange_is_faster_than_its_links(clock, bandwidth):
    with clock.with_constants(link_bandwidth=bandwidth):
        for kernel in clock.run(SMALL, 4, 8):
            assert max(rank.us for rank in kernel) * 1000 >= max(rank.sent for rank in kernel) / bandwidth


def test_what_begins_later_ends_later_by_as_much(clock):
    for early, late in zip(run(clock, kernel_start=1000), run(clock, kernel_start=4000), strict=True):
        assert late.us - early.us == pytest.approx(3, abs=0.1)


def test_barriers_of_all_cores_cost_what_the_table_says(clock):
    for cheap, dear in zip(run(clock, core_barrier=0), run(clock, core_barrier=50_000), strict=True):
        added = dear.us - cheap.us
        assert added == pytest.approx(50 * cheap.cores[0].core_barriers, abs=1.0)


@pytest.mark.parametrize(
    "name",
    ["issue", "scalar_buffer", "event", "copy_start", "load_latency", "remote_store_latency", "vector_tail"],
)
def test_dearer_instructions_make_no_launch_faster(clock, name):
    value = next(one.value for one in clock.constants() if one.name == name)
    now, dearer = run(clock), run(clock, **{name: 10 * value})
    assert sum(rank.us for rank in dearer) > sum(rank.us for rank in now)


def test_cores_are_what_a_launch_with_much_to_do_gains_from(clock):
    few, many = (clock.run(SMALL._replace(tokens=(96,)), 2, cores) for cores in (2, 16))
    assert few.dispatch[0].us > many.dispatch[0].us
    assert few.combine[0].us > many.combine[0].us


def test_the_page_has_the_constants_in_use(clock):
    assert constants_table(clock.constants()) in PAGE.read_text()


@pytest.mark.parametrize("kind", PAPER, ids=str)
def test_the_page_tells_the_time_of_the_smallest_batch(clock, kind):
    shape = Shape(TOKENS[0], kind.hidden, kind.quant)
    once = modelled(clock, shape)
    for row in times_rows(kind, [once] * len(TOKENS), (once, once)):
        begin = " | ".join(row.split(" | ")[:4])
        assert begin in PAGE.read_text()
    assert f"{RANKS} ranks, {CORES} cores, {EXPERTS} experts" in PAGE.read_text()


def test_the_page_tells_the_time_of_counts_of_few_ranks(clock):
    assert counts_row(clock, Counted(16, 16)) in PAGE.read_text()


def test_the_page_tells_what_times_of_steps_cost(clock):
    assert timed_table(clock) in PAGE.read_text()


def test_constants_may_be_what_they_are(clock):
    assert all(one.least <= one.value <= one.most for one in clock.constants())


@pytest.mark.nightly
def test_the_page_tells_all_times(clock):
    assert page(clock) == PAGE.read_text()
