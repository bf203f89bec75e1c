"""int8 rows of the Ascend kernels on the model: the values and scales of the host kernels, to the bit.

A device may differ by one step, where its vector unit rounds otherwise than the model assumes (docs/ascend-kernels.md).
"""

from __future__ import annotations

import pytest

from tests.exchange.scenario import Scenario
from tests.exchange.test_int8 import exchange_quantised, place_zero_rows

from .host_model import on_mixed

CASES = {
    "normal": Scenario(hidden=96, topk=3, routing="sparse", weights="softmax"),
    "special-values": Scenario(hidden=96, topk=3, rows="special"),
    "nan-where-unrouted": Scenario(hidden=96, topk=3, rows="nan-where-unrouted", routing="sparse"),
    "fp16": Scenario(hidden=96, topk=2, dtype="fp16", rows="special"),
    "fp32": Scenario(hidden=96, topk=2, dtype="fp32", rows="special"),
    "rows-of-a-quarter-line": Scenario(hidden=16, topk=8, tokens=(17, 9)),
    "odd-number-of-blocks": Scenario(hidden=16 * 37, topk=2),
    "longer-than-a-tile": Scenario(hidden=8192 + 16, topk=2, rows="special"),
    "longer-than-a-tile-fp32": Scenario(hidden=4096 + 16, topk=2, dtype="fp32"),
    "parts-longer-than-a-tile": Scenario(hidden=20480, topk=2, tokens=(3, 1), rows="special"),
    "hidden-7168": Scenario(hidden=7168, topk=8, experts_per_rank=8, routing="distinct"),
}


@pytest.mark.parametrize("scenario", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize(("ranks", "cores"), [(2, 1), (2, 8), (4, 2)], ids=lambda number: str(number))
def test_int8_rows_and_scales_are_those_of_the_host_kernels(pools, library, ranks, cores, scenario):
    pools.run_on(ranks, library, cores, exchange_quantised, scenario, False)


@pytest.mark.parametrize("name", ["normal", "hidden-7168"])
def test_host_and_ascend_kernels_send_each_other_int8_rows(pools, library, name):
    pools.run(3, on_mixed, library, 2, exchange_quantised, CASES[name], False)


def test_a_zero_row_has_scale_zero(pools, library):
    pools.run_on(2, library, 2, place_zero_rows)
