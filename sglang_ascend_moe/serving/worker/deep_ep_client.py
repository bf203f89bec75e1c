"""SGLang as a client of DeepEP's Buffer: what `--moe-a2a-backend deepep` needs on a machine without accelerator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_ascend_moe.deep_ep import Buffer
from sglang_ascend_moe.errors import Unsupported

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu}
"""Of gated experts, by SGLang's names."""


def make_buffer(
    cls: Any,
    group: Any,
    hidden_size: int,
    param_bytes: int,
    deepep_mode: Any,
    num_max_dispatch_tokens_per_rank: int = -1,
    num_experts: int = -1,
) -> Buffer:
    """In place of `DeepEPBuffer.get_deepep_buffer`: the Buffer of this process, made by the first call."""
    state = cls._state()
    if state.buffer is None:
        ranks = group.size()
        state.hidden_size, state.num_experts = hidden_size, num_experts
        state.num_max_dispatch_tokens_per_rank = num_max_dispatch_tokens_per_rank
        normal = low_latency = 0
        if deepep_mode.enable_normal():
            normal = Buffer.get_dispatch_config(ranks).get_nvl_buffer_size_hint(hidden_size * param_bytes, ranks)
        if deepep_mode.enable_low_latency():
            low_latency = Buffer.get_low_latency_rdma_size_hint(
                num_max_dispatch_tokens_per_rank, hidden_size, ranks, num_experts
            )
        state.buffer = Buffer(group, normal, low_latency, low_latency_mode=deepep_mode.enable_low_latency())
    return state.buffer


def begin_combine(
    _dispatcher: Any,
    hidden_states: Tensor,
    topk_ids: Tensor,  # noqa: ARG001
    topk_weights: Tensor,  # noqa: ARG001
) -> tuple[Tensor, Any]:
    """In place of `combine_a` of the normal dispatcher: what it does with DeepGEMM."""
    return hidden_states, Buffer.capture()


def run_experts(original: Callable[..., Any], layer: Any, dispatch_output: Any) -> Any:
    """Around `DeepEPMoE.run_moe_core`: experts in bfloat16 with the operators of SGLang's `moe_forward_native`."""
    from sglang.srt.layers.moe.token_dispatcher import DispatchOutputChecker, deepep

    if layer.deprecate_flag or layer.quant_config is not None:
        return original(layer, dispatch_output)
    rows, ids, weights = dispatch_output.hidden_states, dispatch_output.topk_ids, dispatch_output.topk_weights
    if dispatch_output.hidden_states_scale is not None:
        raise Unsupported("rows arrive in fp8 at experts of bfloat16: give --deepep-dispatcher-output-dtype bf16")
    if DispatchOutputChecker.format_is_deepep_normal(dispatch_output):
        sums = torch.zeros(rows.shape)
        for expert in range(len(layer.w13_weight)):
            tokens, places = (ids == expert).nonzero(as_tuple=True)
            results = _expert(layer, expert, rows[tokens]).float() * weights[tokens, places].unsqueeze(1)
            sums.index_add_(0, tokens, results)
        return deepep.DeepEPNormalCombineInput(sums.to(rows.dtype), ids, weights)
    results = torch.empty_like(rows)
    for expert, count in enumerate(dispatch_output.masked_m.tolist()):
        results[expert, :count] = _expert(layer, expert, rows[expert, :count])
    return deepep.DeepEPLLCombineInput(results, ids, weights)


def _expert(layer: Any, expert: int, rows: Tensor) -> Tensor:
    activation = ACTIVATIONS[layer.moe_runner_config.activation]
    gate, up = F.linear(rows, layer.w13_weight[expert]).chunk(2, dim=-1)
    return F.linear(activation(gate) * up, layer.w2_weight[expert])
