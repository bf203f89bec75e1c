"""SGLang's DeepEP dispatcher over our Buffer, and what stands in for those of its lines that need CUDA."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sglang.srt.layers.moe.ep_moe.layer import DeepEPMoE
from sglang.srt.layers.moe.token_dispatcher import DispatchOutputChecker, deepep
from torch import Tensor

from sglang_ascend_moe.deep_ep import Buffer, Config


def install() -> None:
    deepep.Buffer, deepep.Config, deepep.use_deepep = Buffer, Config, True
    deepep.DeepEPBuffer.get_deepep_buffer = classmethod(_buffer)
    deepep._DeepEPDispatcherImplNormal.combine_a = _begin_combine
    DeepEPMoE.run_moe_core = _run_experts


def _buffer(cls, group, hidden_size, param_bytes, deepep_mode, max_tokens=-1, num_experts=-1):
    """As SGLang's, without counting the SMs of a CUDA device."""
    state = cls._state()
    if state.buffer is None:
        state.hidden_size, state.num_max_dispatch_tokens_per_rank = hidden_size, max_tokens
        state.num_experts = num_experts
        normal = low_latency = 0
        if deepep_mode.enable_normal():
            normal = Buffer.get_dispatch_config(group.size()).get_nvl_buffer_size_hint(
                hidden_size * param_bytes, group.size()
            )
        if deepep_mode.enable_low_latency():
            low_latency = Buffer.get_low_latency_rdma_size_hint(max_tokens, hidden_size, group.size(), num_experts)
        state.buffer = Buffer(group, normal, low_latency, low_latency_mode=deepep_mode.enable_low_latency())
        print(f"deep_ep: {deepep_mode.value}, {normal} and {low_latency} bytes", flush=True)
    return state.buffer


def _begin_combine(_dispatcher, hidden_states, _topk_ids, _topk_weights):
    """As SGLang's with DeepGEMM."""
    return hidden_states, Buffer.capture()


def _run_experts(layer, dispatch_output):
    """Experts of bfloat16 rows with the operators of SGLang's `moe_forward_native`."""
    rows, ids, weights = dispatch_output.hidden_states, dispatch_output.topk_ids, dispatch_output.topk_weights
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


def _expert(layer, expert: int, rows: Tensor) -> Tensor:
    gate, up = F.linear(rows, layer.w13_weight[expert]).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, layer.w2_weight[expert])
