"""What experts on an NPU compute between their two products, by the operators that SGLang's Ascend runner knows or, for
limits that it leaves out, by one of torch_npu. No NPU has run this.

All but Step 3.5's and GELU end at the counts, so that nothing is computed for rows that are not there.
"""

from typing import Any

import torch

from sglang_ascend_moe.errors import Unsupported

SITU_BOUND = 4.0
"""Of the tanh of `situ` where the model gives none, as in SGLang."""


def activation_of(layer: Any, *, quantised: bool) -> Any:
    """An activation of SGLang's Ascend runner for an MoE layer.

    quantised: its second product takes int8 rows. Raises `Unsupported` for settings that are not known.
    """
    from sglang.srt.hardware_backend.npu.moe.activation import (
        NPUGeluAndMul,
        NPUSitu,
        NPUSwigluDeepEPKernel,
        NPUSwigluStepAndMul,
    )

    config = layer.moe_runner_config
    settings = (config.activation, config.gemm1_alpha, config.gemm1_clamp_limit, config.swiglu_limit)
    match settings if config.is_gated else None:
        case ("silu", None, None, None):
            return NPUSwigluDeepEPKernel(need_quant=quantised)
        case ("silu", None, None, float(limit)):
            return _clipped_swiglu(alpha=1.0, limit=limit, bias=0.0, interleaved=False)
        case ("silu" | "npu_swiglu_oai", float(alpha), float(limit), None):
            return _clipped_swiglu(alpha=alpha, limit=limit, bias=1.0, interleaved=config.gate_up_interleaved)
        case ("silu", None, float(limit), None):
            return NPUSwigluStepAndMul(limit)
        case ("situ", beta, linear_beta, None):
            return NPUSitu(need_quant=quantised, beta=SITU_BOUND if beta is None else beta, linear_beta=linear_beta)
        case ("gelu", None, None, None):
            return NPUGeluAndMul()
    raise Unsupported(
        f"MoE layer {layer.layer_id} has the activation {config.activation!r} with alpha {config.gemm1_alpha}, limit"
        f" {config.gemm1_clamp_limit}, limit before it {config.swiglu_limit} and gate {config.is_gated}, which"
        " --ascend-moe does not support on an NPU; serve the model without it"
    )


def _clipped_swiglu(*, alpha: float, limit: float, bias: float, interleaved: bool) -> Any:
    """g * sigmoid(alpha * g) * (clamp(up) + bias) with g = min(gate, limit); rows are quantised after it, if at all."""
    from sglang.srt.hardware_backend.npu.moe.activation import NPUSwigluDeepEPKernel

    class ClippedSwiglu(NPUSwigluDeepEPKernel):
        """The runner hands counts to activations of this kind only."""

        def __init__(self) -> None:
            pass

        def _apply_activation(
            self, hidden_states: torch.Tensor, group_list: torch.Tensor, **_: Any
        ) -> tuple[torch.Tensor, None]:
            activated = torch.ops.npu.npu_clipped_swiglu(
                hidden_states, group_index=group_list, alpha=alpha, limit=limit, bias=bias, interleaved=interleaved
            )
            return activated, None

    return ClippedSwiglu()
