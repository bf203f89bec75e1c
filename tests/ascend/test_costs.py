"""What the kernels cost, as the model counts it: rows move once each way and are divided evenly; the page says so."""

from __future__ import annotations

import pytest

from sglang_ascend_moe.windows.layout import ExchangeParameters, plan_window
from tests.exchange.scenario import Scenario
from tests.native.lone_rank import LoneRank

from .cost_sheet import CORES, DECODE, PAGE, PREFILL, Costs, Shape, measure, page
from .host_model import CoreCosts, on_model


@pytest.fixture(scope="module")
def costs(clock) -> dict[Shape, Costs]:
    return measure(clock)


@pytest.mark.parametrize("shape", [*DECODE, *PREFILL], ids=str)
def test_rows_move_once_in_each_direction(costs, shape):
    for kernel in costs[shape]:
        assert (kernel.loaded, kernel.stored) == (kernel.least_loaded, kernel.least_stored)


@pytest.mark.parametrize("shape", [*DECODE, *PREFILL], ids=str)
def test_cores_move_equally_many_bytes(costs, shape):
    """To a part of 512 bytes, or to a row where each needs a scale."""
    dispatch, combine = costs[shape]
    unit = shape.hidden if shape.quant else 512
    assert dispatch.is_even(["stored_row_bytes"], 8 * unit)
    assert combine.is_even(["loaded_row_bytes"], 8 * 512)


@pytest.mark.parametrize("shape", [*DECODE, *PREFILL], ids=str)
def test_what_travels_besides_rows_is_little(costs, shape):
    assert costs[shape].dispatch.most("core_barriers") == 2
    assert costs[shape].combine.most("core_barriers") == 0


def test_a_small_decode_step_loads_and_looks_at_little(costs):
    dispatch = costs[Shape(16, 4096)].dispatch
    assert dispatch.most("loaded_other_bytes") <= 6 * 1024
    assert dispatch.most("scalar_accesses") <= 200


def test_the_page_tells_what_is_counted(costs):
    assert page(costs) == PAGE.read_text()


def control_of_lone_rank(library: str, ranks: int, experts: int) -> list[CoreCosts]:
    """Of a dispatch that places nothing, where all others have granted places already."""
    layout = plan_window(
        ExchangeParameters(ranks=ranks, num_experts=experts, hidden=16, max_tokens=1, topk=1, counts="grants")
    )
    with on_model(library, CORES) as model:
        LoneRank(layout).dispatch()
        return model.costs()


def test_what_is_copied_where_places_are_granted_grows_with_the_ranks(library):
    by_ranks = [control_of_lone_rank(library, ranks, ranks) for ranks in (96, 192, 384)]
    # To each rank a record and a grant of 64 bytes and a word of arrival; its count and its total for the host.
    one, two, four = (sum(core.stored_other_bytes for core in cores) for cores in by_ranks)
    assert (two - one, four - two) == (96 * (64 + 64 + 32 + 4 + 8), 192 * (64 + 64 + 32 + 4 + 8))
    for name in ("stores", "loads"):
        one, two, four = (sum(getattr(core, name) for core in cores) for cores in by_ranks)
        # Totals are copied 64 at a time.
        assert abs(four - two - 2 * (two - one)) <= 2


def test_what_is_looked_at_where_places_are_granted_grows_with_the_ranks(clock):
    def looked_at(ranks: int) -> int:
        scenario = Scenario(tokens=(1,), hidden=16, topk=8, experts_per_rank=1, routing="distinct")
        return sum(core.scalar_accesses for core in clock.run(scenario, ranks, 8, counts="grants").dispatch[0].cores)

    one, two, four = map(looked_at, (16, 32, 64))
    assert 1.8 * (two - one) < four - two < 2.2 * (two - one)
