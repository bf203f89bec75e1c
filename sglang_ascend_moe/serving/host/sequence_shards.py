"""Attention on the host where prefill is context-parallel: a rank has a part of the rows, and all keys and values.

Which rows a rank has, SGLang's strategy says: an early and a late piece of each text, or every so many tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.cp.base import get_cp_strategy
from torch import Tensor

from sglang_ascend_moe.serving.host.tree_attention import save

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


def attend_over_shards(
    backend: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: RadixAttention,
    forward_batch: ForwardBatch,
    save_kv_cache: bool,
) -> Tensor:
    """A layer of a batch that is divided. q, k, v: rows of this rank, padding last. Returns [rows, heads * value size],
    zero for padding."""
    if save_kv_cache:
        # Of all tokens of the batch, of which each rank has computed its own.
        gather = get_cp_strategy().gather_kv_cache
        save(backend, gather(k, forward_batch), gather(v, forward_batch), layer, forward_batch, save_kv_cache)
    out = q.new_zeros(q.shape[0], layer.tp_q_head_num, layer.v_head_dim)
    query = q.view(-1, layer.tp_q_head_num, layer.qk_head_dim)
    table = backend.req_to_token_pool.req_to_token
    keys = backend.token_to_kv_pool.get_key_buffer(layer.layer_id)
    values = backend.token_to_kv_pool.get_value_buffer(layer.layer_id)
    new_lengths, lengths = forward_batch.extend_seq_lens_cpu, forward_batch.seq_lens_cpu.tolist()
    # Numbers of this rank's rows among the new tokens of all requests.
    numbers = get_cp_strategy().local_q_indices(sum(new_lengths), forward_batch)
    begin = 0
    for request, new, length in zip(forward_batch.req_pool_indices, new_lengths, lengths, strict=True):
        rows = ((numbers >= begin) & (numbers < begin + new)).nonzero().squeeze(1)
        if len(rows):
            slots = table[request, :length]
            positions = numbers[rows] - begin + length - new
            attended = torch.nn.functional.scaled_dot_product_attention(
                query[rows].transpose(0, 1)[None],
                keys[slots].to(q.dtype).transpose(0, 1)[None],
                values[slots].to(q.dtype).transpose(0, 1)[None],
                attn_mask=torch.arange(length) <= positions[:, None],
                enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
                scale=layer.scaling,
            )
            out[rows] = attended[0].transpose(0, 1)
        begin += new
    return out.view(q.shape[0], -1)
