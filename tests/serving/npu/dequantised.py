"""A quantised MoE layer as its numbers define it, in fp64 and without a rounding in between, and how far from it a
layer may be that rounds where SGLang's Ascend runner does."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.npu.operators.quantisation import by_row
from tests.serving.npu.layers import host_layer
from tests.serving.quantised_models import BITS, by_channel

BFLOAT16 = 2.0**-9
"""Relative: half of what the last bit is worth."""
FP32 = 2.0**-22
"""Of the sum of absolute products: that they are added in fp32."""
STEEPEST = 1.1
"""Slope of SiLU at its steepest."""
EIGHTS = 8
"""Products of 4 bits add and take away so much for each weight."""


class Bounded(NamedTuple):
    """values and the largest error of each, both fp64."""

    values: Tensor
    error: Tensor


def weights_of(prefix: str, kind: str) -> Tensor:
    """fp64 [experts, to, from]; the runner keeps scales of 8 bits in bfloat16."""
    numbers, scales = by_channel(getattr(host_layer(), f"{prefix}_weight").data, BITS[kind])
    scales = scales.bfloat16() if BITS[kind] == 8 else scales
    return numbers.double() * scales.double()


def _product(values: Tensor, error: Tensor, scales: Tensor, weight: Tensor) -> Bounded:
    """Rows that are numbers of 8 bits by `scales` [rows, 1], by weights [to, from], rounded to bfloat16."""
    exact, magnitude = values @ weight.T, (values.abs() + error + EIGHTS * scales) @ weight.abs().T
    moved = error @ weight.abs().T + FP32 * magnitude
    return Bounded(exact, moved + BFLOAT16 * (exact.abs() + moved))


def _expert(x: Tensor, first: Tensor, second: Tensor) -> Bounded:
    numbers, scales = by_row(x)
    scales = scales[:, None].double()
    both = _product(numbers.double() * scales, torch.zeros_like(x, dtype=torch.float64), scales, first)
    (gate, up), (gate_error, up_error) = both.values.chunk(2, dim=1), both.error.chunk(2, dim=1)
    rows = F.silu(gate) * up
    error = STEEPEST * gate_error * (up.abs() + up_error) + F.silu(gate).abs() * up_error
    # The activation is quantised again: by half a step, and what a fp32 product moves a half.
    steps = (rows.abs() + error).amax(dim=1, keepdim=True) / 127
    return _product(rows, error + 0.5001 * steps, steps, second)


def layer_output(x: Tensor, routed: Any, kind: str) -> Bounded:
    """Of the weights of `layers.host_layer`, quantised as `kind`. x: [tokens, hidden]; routed: what a router chose."""
    first, second = weights_of("w13", kind), weights_of("w2", kind)
    values, error = torch.zeros(x.shape, dtype=torch.float64), torch.zeros(x.shape, dtype=torch.float64)
    for k in range(routed.topk_ids.shape[1]):
        for expert in range(len(first)):
            chosen = routed.topk_ids[:, k] == expert
            out = _expert(x[chosen], first[expert], second[expert])
            weight = routed.topk_weights[chosen, k, None].double()
            values[chosen] += weight * out.values
            error[chosen] += weight * (out.error + FP32 * out.values.abs())
    return Bounded(values, error + BFLOAT16 * (values.abs() + error))
