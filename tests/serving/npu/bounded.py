"""What an MoE layer computes without a rounding in between, in fp64, and how far from it one may be that rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BFLOAT16 = 2.0**-8
"""Relative: half of what the last bit is worth."""
FP32 = 2.0**-22
"""Of the sum of absolute products: that they are added in fp32."""
STEEPEST = 1.13
"""Slope of GELU at its steepest; those of the other factors are not steeper."""


class Bounded(NamedTuple):
    """values and the largest error of each, both fp64."""

    values: Tensor
    error: Tensor

    def rounded(self, times: int = 1) -> Bounded:
        """To bfloat16."""
        return Bounded(self.values, self.error + times * BFLOAT16 * (self.values.abs() + self.error))


class Activation(NamedTuple):
    """A product of a function of the gate and one of up. interleaved: they take turns. roundings: of the operator."""

    of_gate: Callable[[Tensor], Tensor]
    of_up: Callable[[Tensor], Tensor]
    interleaved: bool = False
    roundings: int = 1


SWIGLU = Activation(F.silu, lambda up: up, roundings=0)


def activated(both: Bounded, activation: Activation) -> Bounded:
    """Of gate and up together, [rows, 2 * intermediate]."""
    if activation.interleaved:
        (gate, up), (gate_error, up_error) = ((part[:, ::2], part[:, 1::2]) for part in both)
    else:
        (gate, up), (gate_error, up_error) = (part.chunk(2, dim=1) for part in both)
    first, second = activation.of_gate(gate), activation.of_up(up)
    error = STEEPEST * gate_error * (second.abs() + up_error) + first.abs() * up_error
    return Bounded(first * second, error).rounded(activation.roundings)


def routed_sum(x: Tensor, routed: Any, experts: int, expert: Callable[[Tensor, int], Bounded]) -> Bounded:
    """Of what `expert` makes of the rows `x` [tokens, hidden] that a router sent to it, by its weights."""
    values, error = torch.zeros(x.shape, dtype=torch.float64), torch.zeros(x.shape, dtype=torch.float64)
    for k in range(routed.topk_ids.shape[1]):
        for index in range(experts):
            chosen = routed.topk_ids[:, k] == index
            out = expert(x[chosen], index)
            weight = routed.topk_weights[chosen, k, None].double()
            values[chosen] += weight * out.values
            error[chosen] += weight * (out.error + FP32 * out.values.abs())
    return Bounded(values, error).rounded()
