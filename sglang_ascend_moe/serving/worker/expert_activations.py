"""What experts on the host compute between their two products, as SGLang's MoE layers are told to.

Formulas are those of `sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe` and `sglang.srt.layers.activation`.
Those with a limit are computed in float32 and rounded once, as its kernels do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_ascend_moe.errors import Unsupported

Activation = Callable[[Tensor], Tensor]
"""Of the first product [rows, 2 * intermediate], gate and up side by side, to [rows, intermediate] of its dtype."""


class ActivationSettings(NamedTuple):
    """What `MoeRunnerConfig` says of it.

    alpha: factor in the sigmoid, or the bound of the tanh for `situ`. limit: bound of gate and up; for `situ` of up
    alone, by a tanh. limit_before: bound of gate and up before `silu`. interleaved: with `alpha`, gate and up take
    turns.
    """

    name: str
    alpha: float | None
    limit: float | None
    limit_before: float | None
    interleaved: bool


def activation_of(layer: Any) -> Activation:
    """Of an MoE layer of SGLang. Raises `Unsupported` for one that is not known."""
    config = layer.moe_runner_config
    settings = ActivationSettings(
        config.activation,
        config.gemm1_alpha,
        config.gemm1_clamp_limit,
        config.swiglu_limit,
        config.gate_up_interleaved,
    )
    if not config.is_gated:
        raise Unsupported(
            f"the activation {settings.name!r} without a gate, which --ascend-moe does not support; serve the model"
            " without it"
        )
    return _activation(settings)


@cache
def _activation(settings: ActivationSettings) -> Activation:
    from sglang.srt.layers.activation import GeluAndMul, SiluAndMul, SituAndMul

    match settings:
        case ActivationSettings("silu", None, None, None):
            return SiluAndMul().forward_native
        case ActivationSettings("gelu", None, None, None):
            return GeluAndMul().forward_native
        case ActivationSettings("situ", beta, linear_beta, None):
            return SituAndMul(beta=4.0 if beta is None else beta, linear_beta=linear_beta).forward_native
        case ActivationSettings("silu", None, None, float(limit)):
            return partial(_clamped_then_silu, limit=limit)
        case ActivationSettings("silu", None, float(limit), None):
            return partial(_silu_then_clamped, limit=limit)
        case ActivationSettings("silu", float(alpha), float(limit), None, interleaved):
            return partial(_clamped_with_alpha, alpha=alpha, limit=limit, interleaved=interleaved)
    raise Unsupported(
        f"the activation {settings.name!r} with alpha {settings.alpha}, limit {settings.limit} and limit before it"
        f" {settings.limit_before}, which --ascend-moe does not support; serve the model without it"
    )


def _halves(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gate, up


def _clamped_then_silu(gate_up: Tensor, limit: float) -> Tensor:
    """DeepSeek-V4: silu(min(gate, limit)) * clamp(up)."""
    gate, up = _halves(gate_up)
    return (F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)).to(gate_up.dtype)


def _silu_then_clamped(gate_up: Tensor, limit: float) -> Tensor:
    """Step 3.5: min(silu(gate), limit) * clamp(up)."""
    gate, up = _halves(gate_up)
    return (F.silu(gate).clamp(max=limit) * up.clamp(-limit, limit)).to(gate_up.dtype)


def _clamped_with_alpha(gate_up: Tensor, alpha: float, limit: float, interleaved: bool) -> Tensor:
    """gpt-oss: g * sigmoid(alpha * g) * (clamp(up) + 1), with g = min(gate, limit)."""
    gate, up = (gate_up[..., ::2].float(), gate_up[..., 1::2].float()) if interleaved else _halves(gate_up)
    gate = gate.clamp(max=limit)
    return (gate * torch.sigmoid(gate * alpha) * (up.clamp(-limit, limit) + 1)).to(gate_up.dtype)
