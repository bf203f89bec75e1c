"""What ranks see of low-latency calls, and what they have to see."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sglang_ascend_moe.deep_ep import Buffer
from tests.exchange import reference
from tests.exchange.pool import Rank
from tests.exchange.reference import RankInput, RankRows, scale_by_place
from tests.exchange.scenario import Scenario

from .deliberate_mistakes import mutated

SCENARIO = Scenario(tokens=(6, 0, 11, 3), experts_per_rank=3, hidden=512, topk=3, routing="distinct")
FP8 = {
    "bf16": {"use_fp8": False},
    "fp8": {"use_fp8": True},
    "rounded": {"use_fp8": True, "round_scale": True},
    "ue8m0": {"use_fp8": True, "round_scale": True, "use_ue8m0": True},
}
STATISTICS_BEFORE = 5
DISPATCHES = 2


class Case(NamedTuple):
    scenario: Scenario = SCENARIO
    fp8: str = "bf16"
    hooks: bool = True

    def inputs(self, ranks: int) -> list[RankInput]:
        """With -1 here and there."""
        generator = torch.Generator().manual_seed(self.scenario.seed)
        drawn = []
        for x, ids, weights in self.scenario.inputs(ranks):
            dropped = torch.rand(ids.shape, generator=generator) < 0.2
            drawn.append(RankInput(x, ids.masked_fill(dropped, -1), weights))
        return drawn


class Observed(NamedTuple):
    """Of one rank; rows and what lies beside them are the valid ones, by expert."""

    rows: Tensor
    scales: Tensor | None
    counts: Tensor
    statistics_before_hook: Tensor
    statistics: Tensor
    source_tokens: Tensor
    ranges: Tensor
    combined: Tensor
    combined_again: Tensor
    zero_copied: Tensor
    without_first: Tensor
    out_was_returned: bool


def open_buffer(rank: Rank, scenario: Scenario) -> Buffer:
    options = scenario.options(rank.size)
    size = Buffer.get_low_latency_rdma_size_hint(
        options["max_tokens"], scenario.hidden, rank.size, options["num_experts"]
    )
    return Buffer(rank.group, 0, size, low_latency_mode=True, explicitly_destroy=True)


def packed(padded: Tensor, counts: Tensor) -> Tensor:
    return torch.cat([expert[:count] for expert, count in zip(padded, counts.tolist(), strict=True)])


def padded_as(shape: torch.Size, results: Tensor, counts: Tensor) -> Tensor:
    """`results` of the valid rows where the rows were; NaN elsewhere, which no sum may meet."""
    laid_out = torch.full(shape, torch.nan, dtype=results.dtype)
    for expert, result in zip(laid_out, results.split(counts.tolist()), strict=True):
        expert[: len(result)] = result
    return laid_out


def cast_back(values: Tensor, scales: Tensor) -> Tensor:
    """bfloat16 of fp8 values [rows, hidden] with scales as `low_latency_dispatch` returns them."""
    if scales.dtype is torch.int32:
        scales = (scales.contiguous().view(torch.uint8).int() << 23).view(torch.float32)
    blocks = values.float().view(len(values), scales.shape[1], 128)
    return (blocks * scales.unsqueeze(2)).view(values.shape).to(torch.bfloat16)


def observe(rank: Rank, case: Case, mutation: str | None = None) -> Observed:
    """Dispatches twice, the second time with a call in between, and combines in every way."""
    with mutated(mutation):
        x, ids, weights = case.inputs(rank.size)[rank.rank]
        buffer = open_buffer(rank, case.scenario)
        local = case.scenario.experts_per_rank
        statistics = torch.full((local,), STATISTICS_BEFORE, dtype=torch.int32)
        options = case.scenario.options(rank.size)
        for _ in range(DISPATCHES):
            before = statistics.clone()
            sent = x.clone()
            received, counts, handle, event, hook = buffer.low_latency_dispatch(
                sent, ids, options["max_tokens"], options["num_experts"], statistics,
                async_finish=not case.hooks, return_recv_hook=case.hooks, **FP8[case.fp8],
            )  # fmt: skip
            if case.hooks:
                sent.fill_(torch.nan)
                before = statistics.clone()
                torch.mm(torch.ones(64, 64), torch.ones(64, 64))
            hook() if hook is not None else event.current_stream_wait()
        values, scales = received if isinstance(received, tuple) else (received, None)
        rows = packed(values, counts).clone()
        row_scales = None if scales is None else packed(scales, counts).clone()
        plain = rows if row_scales is None else cast_back(rows, row_scales)
        results = scale_by_place(plain, counts.long(), rank.rank * local)
        shape = values.shape

        def combine(given: Tensor, ids: Tensor = ids, **options: object) -> Tensor:
            result, event, hook = buffer.low_latency_combine(
                given, ids, weights, handle, async_finish=not case.hooks, return_recv_hook=case.hooks, **options
            )
            hook() if hook is not None else event.current_stream_wait()
            return result

        combined = combine(padded_as(shape, results, counts))
        combined_again = combine(padded_as(shape, results * 2, counts))
        buffer.get_next_low_latency_combine_buffer(handle).copy_(padded_as(shape, results * 4, counts))
        zero_copied = combine(padded_as(shape, results, counts), zero_copy=True)
        out = torch.full_like(x, torch.nan)
        fewer = ids.clone()
        fewer[:, 0] = -1
        without_first = combine(padded_as(shape, results, counts), fewer, out=out)
        source_tokens, ranges = packed(handle[0], counts).clone(), handle[1]
        buffer.destroy()
    # Tensors of fp8 cannot be pickled.
    portable = rows if row_scales is None else rows.view(torch.int16)
    return Observed(
        portable, row_scales, counts, before, statistics, source_tokens, ranges, combined, combined_again, zero_copied,
        without_first, without_first is out,
    )  # fmt: skip


class Expected:
    """What every rank has to see."""

    def __init__(self, case: Case, ranks: int) -> None:
        self.inputs = case.inputs(ranks)
        rows = reference.dispatch(self.inputs, case.scenario.num_experts(ranks))
        self.quantised = None if case.fp8 == "bf16" else [quantised(each.rows, case.fp8) for each in rows]
        self.rows = rows
        plain = rows
        if self.quantised is not None:
            plain = [
                RankRows(cast_back(values, scales), each.counts, each.origins)
                for each, (values, scales) in zip(rows, self.quantised, strict=True)
            ]
        self.outs = [
            scale_by_place(each.rows, each.counts, place * len(each.counts)) for place, each in enumerate(plain)
        ]

    def combined(self, factor: float = 1.0, *, without_first: bool = False) -> list[Tensor]:
        inputs = self.inputs
        if without_first:
            inputs = [RankInput(x, ids, weights.clone()) for x, ids, weights in inputs]
            for _, _, weights in inputs:
                weights[:, 0] = 0
        return reference.combine(inputs, self.rows, [out * factor for out in self.outs])


def quantised(rows: Tensor, fp8: str) -> tuple[Tensor, Tensor]:
    """By DeepEP's description, one row and one block after the other, in float32."""
    values, scales = torch.empty(rows.shape, dtype=torch.float8_e4m3fn), torch.empty(len(rows), rows.shape[1] // 128)
    for row in range(len(rows)):
        for block in range(scales.shape[1]):
            elements = rows[row, block * 128 : (block + 1) * 128].float()
            magnitude = np.float32(max(float(elements.abs().max()), np.float32(1e-4)))
            scale = magnitude * np.float32(1 / 448)
            factor = np.float32(448) / magnitude
            if fp8 != "bf16" and fp8 != "fp8":
                exponent = 0
                while 2.0**exponent >= scale:
                    exponent -= 1
                while 2.0**exponent < scale:
                    exponent += 1
                scale, factor = np.float32(2.0**exponent), np.float32(2.0**-exponent)
            scales[row, block] = float(scale)
            values[row, block * 128 : (block + 1) * 128] = (elements * float(factor)).to(torch.float8_e4m3fn)
    if fp8 == "ue8m0":
        exponents = (scales.view(torch.int32) >> 23).to(torch.uint8)
        return values, exponents.view(torch.int32)
    return values, scales
