"""Experts on the host: matrix products of torch on the rows of the window.

The operators are those of SGLang's `moe_forward_native`, so that an expert's output is bit for bit the same for the
same rows: gate and up in one product in the dtype of the rows; biases added in float32; activation and product rounded
to it each. Weights that are int8 are multiplied otherwise: see `int8_experts`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.serving.worker import int8_experts
from sglang_ascend_moe.serving.worker.expert_activations import activation_of

ROWS_TOGETHER = 512
"""Most rows with which the intermediate results of all experts are kept at once, for an activation in one step."""


def compute(layer: Any, rows: ExpertRows) -> None:
    """Run the local experts of `layer`, SGLang's `FusedMoE`, on the rows of the window; writes `rows.out`."""
    activation = activation_of(layer)
    if layer.w13_weight.dtype == torch.int8:
        int8_experts.compute(layer, rows, activation, ROWS_TOGETHER)
        return
    first_bias, second_bias = getattr(layer, "w13_weight_bias", None), getattr(layer, "w2_weight_bias", None)
    sizes = rows.counts.tolist()
    total = sum(sizes)
    if total <= ROWS_TOGETHER:
        x = _expert_rows(rows, 0, total)
        used = [expert for expert, size in enumerate(sizes) if size]
        sizes = [sizes[expert] for expert in used]
        gate_up = x.new_empty(total, layer.w13_weight.shape[1])
        _multiply(x, layer.w13_weight, first_bias, used, sizes, gate_up)
        _multiply(activation(gate_up), layer.w2_weight, second_bias, used, sizes, rows.out[:total])
        return
    start = 0
    for expert, count in enumerate(sizes):
        end = start + count
        if count:
            gate_up = F.linear(_expert_rows(rows, start, end), layer.w13_weight[expert])
            _add(first_bias, expert, gate_up)
            torch.mm(activation(gate_up), layer.w2_weight[expert].t(), out=rows.out[start:end])
            _add(second_bias, expert, rows.out[start:end])
        start = end


def _multiply(
    x: Tensor, weights: Tensor, biases: Tensor | None, experts: list[int], sizes: list[int], out: Tensor
) -> None:
    """Rows of `experts`, `sizes` of `x` [total, from], by their weights [experts, to, from] into `out` [total, to]."""
    transposed = weights.transpose(1, 2).unbind()
    for expert, part, into in zip(experts, x.split(sizes), out.split(sizes), strict=True):
        torch.mm(part, transposed[expert], out=into)
        _add(biases, expert, into)


def _add(biases: Tensor | None, expert: int, rows: Tensor) -> None:
    if biases is not None:
        rows.copy_(rows.float() + biases[expert])


def _expert_rows(rows: ExpertRows, start: int, end: int) -> Tensor:
    """Rows `start` to `end` of the window in the dtype of the model; a view unless they travelled as int8."""
    if rows.scales is None:
        return rows.rows[start:end]
    return (rows.rows[start:end].float() * rows.scales[start:end, None]).to(rows.out.dtype)
