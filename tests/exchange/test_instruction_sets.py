"""Every instruction set gives the same bits: rows, scales and sums."""

from __future__ import annotations

import platform

import pytest

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.native import select_kernels

from .pool import Rank
from .scenario import Scenario
from .test_bit_exact import exchange_in_every_schedule
from .test_int8 import exchange_quantised

WIDEST_FIRST = ["avx512", "avx2", "portable"] if platform.machine() == "x86_64" else ["portable"]


def available() -> list[str]:
    """What this processor has; the widest it has is the default, so everything from there on is there."""
    widest = select_kernels(None)
    return WIDEST_FIRST[WIDEST_FIRST.index(widest) :]


def with_kernels(rank: Rank, name: str, scenario: Scenario) -> None:
    try:
        assert select_kernels(name) == name
        exchange_in_every_schedule(rank, "windows", scenario)
        exchange_quantised(rank, scenario, verify=False)
    finally:
        select_kernels(None)


@pytest.mark.parametrize("hidden", [16, 48, 80, 512, 7168], ids=lambda hidden: f"hidden-{hidden}")
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", available())
def test_kernels_of_an_instruction_set_give_the_bits_of_the_reference(pools, name, dtype, hidden):
    pools.run(2, with_kernels, name, Scenario(hidden=hidden, topk=8, dtype=dtype, rows="special", weights="signed"))


def test_the_kernels_of_another_processor_are_refused():
    with pytest.raises(Unsupported, match="neon2048"):
        select_kernels("neon2048")
