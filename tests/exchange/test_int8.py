"""With quant="int8" rows travel as int8 with a scale each: the exact values, and results that experts can rely on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sglang_ascend_moe.exchange.schedules.rows import ExpertRows

from . import reference
from .bits import require_same_values
from .pool import Rank
from .reference import scale_by_expert
from .scenario import Rows, Scenario
from .surface import open_exchange


def quantise(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The specification, per row: scale = max / 127, int8 = x * (127 / max) to nearest even, all in float32."""
    values = rows.float()
    greatest = values.abs().amax(dim=1)
    finite = values.isfinite().all(dim=1)
    usable = finite & (greatest >= 2.0**-120)
    # Not `127.0 / greatest`: torch makes a reciprocal and a product of that.
    inverse = torch.where(usable, torch.div(torch.full_like(greatest, 127.0), greatest), 0.0)
    scaled = torch.where(usable[:, None], values, 0.0) * inverse[:, None]
    scales = torch.where(usable, torch.div(greatest, torch.full_like(greatest, 127.0)), 0.0)
    scales = torch.where(finite, scales, torch.nan)
    return scaled.clamp(-127, 127).round().to(torch.int8), scales


def dequantised(rows: ExpertRows, dtype: torch.dtype) -> Tensor:
    total = int(rows.counts.sum())
    return (rows.rows[:total].float() * rows.scales[:total, None]).to(dtype)


def exchange_quantised(rank: Rank, scenario: Scenario, verify: bool) -> None:
    inputs = scenario.inputs(rank.size)
    placed = reference.dispatch(inputs, scenario.num_experts(rank.size))
    outs = []
    for number, mine in enumerate(placed):
        values, scales = quantise(mine.rows)
        as_experts_see_them = (values.float() * scales[:, None]).to(mine.rows.dtype)
        outs.append(scale_by_expert(as_experts_see_them, mine.counts, number * len(mine.counts)))
    expected = reference.combine(inputs, placed, outs)[rank.rank]

    with open_exchange("windows", rank, scenario, quant="int8", verify=verify, slots=2) as exchange:
        for phase in ("decode", "prefill"):
            rows = exchange.dispatch(*inputs[rank.rank], phase=phase)
            total = int(rows.counts.sum())
            values, scales = quantise(placed[rank.rank].rows)
            assert rows.rows.dtype == torch.int8
            assert torch.equal(rows.rows[:total], values)
            require_same_values(rows.scales[:total].contiguous(), scales, "scales")
            seen = dequantised(rows, inputs[0].x.dtype)
            rows.out[:total] = scale_by_expert(seen, rows.counts, rank.rank * len(rows.counts))
            require_same_values(exchange.combine(rows.out, rows), expected, f"{phase}: combined")


@pytest.mark.parametrize("verify", [False, True], ids=["plain", "verified"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("rows", ["normal", "special", "nan-where-unrouted"])
@pytest.mark.parametrize("ranks", [2, 3], ids=lambda ranks: f"{ranks}ranks")
def test_int8_rows_and_scales_are_exact(pools, ranks: int, rows: Rows, dtype: str, verify: bool) -> None:
    scenario = Scenario(hidden=96, topk=3, dtype=dtype, rows=rows, routing="sparse", weights="softmax")
    pools.run(ranks, exchange_quantised, scenario, verify)


@pytest.mark.parametrize("hidden", [16, 48], ids=lambda hidden: f"hidden-{hidden}")
def test_verified_int8_rows_need_not_fill_a_block_of_the_checksum(pools, hidden: int) -> None:
    pools.run(2, exchange_quantised, Scenario(hidden=hidden, topk=3), True)


def place_zero_rows(rank: Rank) -> None:
    scenario = Scenario(rows="constant", hidden=32)
    x, ids, weights = scenario.inputs(rank.size)[rank.rank]
    with open_exchange("windows", rank, scenario, quant="int8") as exchange:
        rows = exchange.dispatch(torch.zeros_like(x), ids, weights)
        total = int(rows.counts.sum())
        assert not rows.rows[:total].any()
        assert not rows.scales[:total].any()
        rows.out[:total] = dequantised(rows, x.dtype)
        assert not exchange.combine(rows.out, rows).any()


def test_a_zero_row_has_scale_zero(pools) -> None:
    pools.run(3, place_zero_rows)


def halves_memory(rank: Rank) -> None:
    scenario = Scenario(hidden=4096)
    with open_exchange("windows", rank, scenario) as plain, open_exchange("windows", rank, scenario, quant="int8") as q:
        rows = plain.window.regions.rows
        assert q.window.regions.rows * 2 == rows
        assert plain.window.regions.out == q.window.regions.out
        assert plain.window.regions.scales == 0


def test_int8_rows_take_half_the_window(pools) -> None:
    pools.run(2, halves_memory)
