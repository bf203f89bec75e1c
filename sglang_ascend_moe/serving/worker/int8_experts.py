"""Experts on the host whose weights are int8 with a scale for each channel: rows are quantised, products are of
integers.

A row is quantised as dispatch does it (`quant="int8"`), so one that travelled as int8 goes in as it is, with the same
bits. The products of integers are exact: an expert's output does not depend on the rows beside it. They are scaled in
float32, by channel and then by row, and rounded once, as SGLang does it on an NPU; so are the activations between two
products quantised without being rounded before.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.serving.worker.expert_activations import Activation

ONE_BY_ONE = 3
"""Rows that are multiplied one after the other: torch reads weights once for a single row, and sorts them anew for
more."""

SMALLEST = 2.0**-120
"""A row whose greatest magnitude is less counts as zero."""


class QuantisedRows(NamedTuple):
    """numbers: int8 [rows, from]. scales: fp32 [rows], NaN for a row that is not finite."""

    numbers: Tensor
    scales: Tensor


def quantised(rows: Tensor) -> QuantisedRows:
    """rows: [rows, from] of any float. scale = max / 127, number = value * (127 / max) to the nearest even."""
    values = rows.float()
    greatest = values.abs().amax(dim=1)
    finite, large = greatest.isfinite(), greatest >= SMALLEST
    factors = torch.where(finite & large, 127 / greatest, 0.0)
    # Of a row that is not finite zero times infinity is left.
    numbers = (values * factors[:, None]).round_().nan_to_num_(0.0)
    scales = torch.where(large, greatest / 127, 0.0)
    return QuantisedRows(numbers.to(torch.int8), scales.masked_fill_(~finite, torch.nan))


def compute(layer: Any, rows: ExpertRows, activation: Activation, most: int) -> None:
    """Run the local experts of `layer`, SGLang's `FusedMoE`, on the rows of the window; writes `rows.out`.

    Experts are taken together as long as they have `most` rows at most.
    """
    start = 0
    for experts, sizes in _together(rows.counts.tolist(), most):
        end = start + sum(sizes)
        taken, out = _taken(rows, start, end), rows.out[start:end]
        gate_up = out.new_empty(end - start, layer.w13_weight.shape[1])
        _multiply(taken, layer, "w13", experts, sizes, gate_up)
        _multiply(quantised(activation(gate_up.float())), layer, "w2", experts, sizes, out)
        start = end


def _together(counts: list[int], most: int) -> list[tuple[list[int], list[int]]]:
    """Experts that have rows, and how many each has, in groups of `most` rows or of one expert."""
    groups: list[tuple[list[int], list[int]]] = []
    for expert, count in enumerate(counts):
        if not count:
            continue
        if not groups or sum(groups[-1][1]) + count > most:
            groups.append(([], []))
        groups[-1][0].append(expert)
        groups[-1][1].append(count)
    return groups


def _taken(rows: ExpertRows, start: int, end: int) -> QuantisedRows:
    if rows.scales is None:
        return quantised(rows.rows[start:end])
    return QuantisedRows(rows.rows[start:end], rows.scales[start:end])


def _multiply(rows: QuantisedRows, layer: Any, prefix: str, experts: list[int], sizes: list[int], out: Tensor) -> None:
    """`sizes` of the rows by the weights of each of `experts` into `out` [rows, to]."""
    weights, scales = getattr(layer, f"{prefix}_weight"), getattr(layer, f"{prefix}_weight_scale")
    products = [
        torch._int_mm(part, weights[expert].t())
        for expert, own in zip(experts, rows.numbers.split(sizes), strict=True)
        for part in (own.split(1) if len(own) <= ONE_BY_ONE else (own,))
    ]
    places = torch.tensor(experts).repeat_interleave(torch.tensor(sizes))
    scaled = torch.cat(products).float().mul_(scales[places, :, 0]).mul_(rows.scales[:, None])
    bias = getattr(layer, f"{prefix}_weight_bias", None)
    out.copy_(scaled if bias is None else scaled.add_(bias[places]))
