"""A quantised MoE layer as its numbers define it, in fp64 and without a rounding in between, and how far from it a
layer may be that rounds where SGLang's Ascend runner does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.npu.operators.quantisation import by_row
from tests.serving.npu.bounded import FP32, SWIGLU, Activation, Bounded, activated, routed_sum
from tests.serving.npu.layers import EXPERTS, host_layer
from tests.serving.quantised_models import BITS, by_channel

EIGHTS = 8
"""Products of 4 bits add and take away so much for each weight."""


def weights_of(prefix: str, kind: str) -> Tensor:
    """fp64 [experts, to, from]; the runner keeps scales of 8 bits in bfloat16."""
    numbers, scales = by_channel(getattr(host_layer(), f"{prefix}_weight").data, BITS[kind])
    scales = scales.bfloat16() if BITS[kind] == 8 else scales
    return numbers.double() * scales.double()


def _product(values: Tensor, error: Tensor, scales: Tensor, weight: Tensor) -> Bounded:
    """Rows that are numbers of 8 bits by `scales` [rows, 1], by weights [to, from], rounded to bfloat16."""
    exact, magnitude = values @ weight.T, (values.abs() + error + EIGHTS * scales) @ weight.abs().T
    return Bounded(exact, error @ weight.abs().T + FP32 * magnitude).rounded()


def _expert(x: Tensor, first: Tensor, second: Tensor, activation: Activation) -> Bounded:
    numbers, scales = by_row(x)
    scales = scales[:, None].double()
    both = _product(numbers.double() * scales, torch.zeros_like(x, dtype=torch.float64), scales, first)
    rows, error = activated(both, activation)
    # The activation is quantised again: by half a step, and what a fp32 product moves a half.
    steps = (rows.abs() + error).amax(dim=1, keepdim=True) / 127
    return _product(rows, error + 0.5001 * steps, steps, second)


def layer_output(x: Tensor, routed: Any, kind: str, activation: Activation = SWIGLU) -> Bounded:
    """Of the weights of `layers.host_layer`, quantised as `kind`. x: [tokens, hidden]; routed: what a router chose."""
    first, second = weights_of("w13", kind), weights_of("w2", kind)
    return routed_sum(x, routed, EXPERTS, lambda rows, expert: _expert(rows, first[expert], second[expert], activation))
