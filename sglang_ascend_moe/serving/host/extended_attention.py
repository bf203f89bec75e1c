"""What `torch_native` attention does with batches of several tokens per request: hook of `host_hooks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def forward_extend(
    original: Callable[..., Tensor],
    backend: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
) -> Tensor:
    """Around `TorchNativeAttnBackend.forward_extend`: trees that are verified, what a draft reads of them, and texts
    that are divided among ranks."""
    mode = forward_batch.forward_mode
    if mode.is_target_verify() or mode.is_draft_extend_v2():
        from sglang_ascend_moe.serving.host.tree_attention import attend_over_trees

        return attend_over_trees(backend, q, k, v, layer, forward_batch, save_kv_cache)
    if forward_batch.attn_cp_metadata is not None:
        from sglang_ascend_moe.serving.host.sequence_shards import attend_over_shards

        return attend_over_shards(backend, q, k, v, layer, forward_batch, save_kv_cache)
    return original(backend, q, k, v, layer, forward_batch, save_kv_cache)
