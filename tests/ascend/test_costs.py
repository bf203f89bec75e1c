"""What the kernels cost, as the model counts it: rows move once each way and are divided evenly; the page says so."""

from __future__ import annotations

import pytest

from .cost_sheet import DECODE, PAGE, PREFILL, Costs, Shape, measure, page


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
