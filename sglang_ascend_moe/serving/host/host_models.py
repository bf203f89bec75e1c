"""Torch forms of what SGLang's models do with Triton kernels only, and a way around what they assume of accelerators.

Hooks of `host_hooks`. The rest of these models runs on the host unchanged.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def add_gated_shared_expert(
    hidden_states: Tensor, gate_weight: Tensor, shared_output: Tensor, final_hidden_states: Tensor
) -> None:
    """In place of `fused_gate_sigmoid_mul_add` (Qwen2-MoE).

    hidden_states, shared_output, final_hidden_states: [T, H]; gate_weight: [H]. Adds sigmoid(x . gate) * shared to the
    last, rounded once, as the kernel does.
    """
    gate = torch.sigmoid(hidden_states.float() @ gate_weight.float())
    final_hidden_states.copy_(final_hidden_states.float() + gate[:, None] * shared_output.float())


def rope_without_scaling(original: Callable[..., Any], *settings: Any) -> Any:
    """Around `get_rope_cpu`, which knows DeepSeek's scaled form only: without scaling, SGLang's ordinary one.

    settings: head size, rotary size, most positions, base, neox style, scaling, dtype, partial factor, device.
    """
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    scaling = settings[5]
    return get_rope(*settings[:8]) if scaling is None else original(*settings)


def latent_attention_handler(_original: Callable[..., Any], registry: Any, backend_name: str) -> Any:
    """Around `AttentionBackendRegistry.get_handler`: backends without a handler attend over compressed keys throughout.

    The handler that SGLang falls back to expands keys for prefill, and then stores what the cache has no place for.
    """
    return registry._handlers.get(backend_name, _attend_compressed)


def _attend_compressed(_attention: Any, _forward_batch: Any) -> Any:
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    return AttnForwardMethod.MLA


def query_key_squares(queries: Tensor, keys: Tensor, /) -> Tensor:
    """In place of `rms_sumsq_serial` (MiniMax-M2): sums of squares, float32, over this rank's part of every row.

    queries: [T, Q], keys: [T, K]. Returns those of the queries, then those of the keys, padded to a multiple of 4.
    """
    rows = queries.shape[0]
    squares = torch.zeros(-(-2 * rows // 4) * 4, dtype=torch.float32)
    squares[:rows] = queries.float().square().sum(dim=1)
    squares[rows : 2 * rows] = keys.float().square().sum(dim=1)
    return squares


def normalise_queries_keys(
    queries: Tensor,
    keys: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    squares: Tensor,
    ranks: int = 1,
    epsilon: float = 1e-5,
    /,
) -> tuple[Tensor, Tensor]:
    """In place of `rms_apply_serial` (MiniMax-M2): RMSNorm of rows that `ranks` ranks hold equal parts of.

    `squares` as `query_key_squares` returns them, summed over the ranks.
    """
    rows = queries.shape[0]

    def normalise(x: Tensor, weight: Tensor, sums: Tensor) -> Tensor:
        scale = torch.rsqrt(sums / x.shape[1] / ranks + epsilon)
        return (x.float() * scale[:, None] * weight.float()).to(x.dtype)

    return (
        normalise(queries, query_weight, squares[:rows]),
        normalise(keys, key_weight, squares[rows : 2 * rows]),
    )
