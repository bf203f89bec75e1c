"""Attention of speculative steps on the host: trees of draft tokens that are verified, and branches that are drafted.

SGLang's `torch_native` attends token after token, or to a whole text at once. Here all requests of a batch are gathered
to one length, and a mask says what a token sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from torch import Tensor

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class Visible(NamedTuple):
    """What queries see. slots: [B, L] where keys lie; mask: [B, Q, L], True where a query sees the key."""

    slots: Tensor
    mask: Tensor


def attend(backend: Any, q: Tensor, layer: RadixAttention, visible: Visible) -> Tensor:
    """q: [rows, heads * head size], B * Q of them and perhaps padding behind, which gives zeros."""
    batch, queries, _ = visible.mask.shape
    out = q.new_zeros(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)
    if batch == 0:
        return out
    pool = backend.token_to_kv_pool
    keys = pool.get_key_buffer(layer.layer_id)[visible.slots].to(q.dtype)
    values = pool.get_value_buffer(layer.layer_id)[visible.slots].to(q.dtype)
    query = q[: batch * queries].view(batch, queries, layer.tp_q_head_num, layer.qk_head_dim)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=visible.mask[:, None],
        scale=layer.scaling,
        enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
    )
    out[: batch * queries] = attended.transpose(1, 2).reshape(batch * queries, -1)
    return out


def trees_of(table: Tensor, requests: Tensor, prefixes: Tensor, trees: Tensor) -> Visible:
    """table: [any, context] slots of the requests. prefixes: [B] tokens before a tree; trees: [B, Q, Q] bool."""
    batch, size, _ = trees.shape
    columns = torch.arange(int(prefixes.max()) + size)[None]
    place = columns - prefixes[:, None]
    # Past its end a request reads its last token again, because other slots may hold anything, NaN included.
    slots = table[requests.long()[:, None], torch.minimum(columns, prefixes[:, None] + size - 1)].long()
    within = trees.gather(2, place.clamp(0, size - 1)[:, None].expand(batch, size, -1))
    inside = (place >= 0) & (place < size)
    return Visible(slots, (place < 0)[:, None] | (inside[:, None] & within))


def branches_of(table: Tensor, requests: Tensor, prefixes: Tensor, branches: int, stride: int, drafted: int) -> Visible:
    """Each of `branches` branches of a request sees the prefix and `drafted` tokens of its own; Q is 1.

    The slots of a branch begin `stride` behind those of the one before.
    """
    lengths = prefixes.repeat_interleave(branches) + drafted
    columns = torch.arange(int(lengths.max()))[None]
    start = (torch.arange(branches) * stride).repeat(len(prefixes))[:, None]
    place = torch.minimum(columns, lengths[:, None] - 1)
    place = torch.where(place >= lengths[:, None] - drafted, place + start, place)
    slots = table[requests.long().repeat_interleave(branches)[:, None], place].long()
    return Visible(slots, (columns < lengths[:, None])[:, None])


def attend_over_trees(
    backend: Any,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layer: RadixAttention,
    forward_batch: ForwardBatch,
    save_kv_cache: bool,
) -> Tensor:
    """A layer of a step that verifies trees, or in which a draft model reads what has been verified."""
    save(backend, k, v, layer, forward_batch, save_kv_cache)
    known = getattr(backend, "_visible_to", None)
    if known is None or known[0] is not forward_batch:
        known = backend._visible_to = (forward_batch, _visible(backend, forward_batch))
    return attend(backend, q, layer, known[1])


def save(
    backend: Any, k: Tensor, v: Tensor, layer: RadixAttention, forward_batch: ForwardBatch, save_kv_cache: bool
) -> None:
    """Write keys and values into the cache."""
    if save_kv_cache and k is not None and v is not None:
        places = KVWriteLoc(forward_batch.out_cache_loc, backend.swa_out_cache_loc)
        backend.token_to_kv_pool.set_kv_buffer(layer, places, k, v)


def _visible(backend: Any, forward_batch: ForwardBatch) -> Visible:
    spec_info: Any = forward_batch.spec_info
    size = spec_info.num_tokens_per_req
    table, requests = backend.req_to_token_pool.req_to_token, forward_batch.req_pool_indices
    batch = len(requests)
    if forward_batch.forward_mode.is_target_verify():
        prefixes = forward_batch.seq_lens
        verified = spec_info.custom_mask.numel() // size**2
        trees = torch.ones(batch, size, size, dtype=torch.bool)
        trees[:verified] = spec_info.custom_mask.view(-1, size, size)[:batch]
    else:
        prefixes = (forward_batch.seq_lens - size).clamp(min=0)
        trees = torch.ones(size, size, dtype=torch.bool).tril().expand(batch, size, size)
    return trees_of(table, requests, prefixes, trees)


class _DraftStep(TorchNativeAttnBackend):
    """One step of a draft."""

    visible: Visible

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Nothing: all steps are prepared together."""

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> Tensor:
        save(self, k, v, layer, forward_batch, save_kv_cache)
        return attend(self, q.reshape(q.shape[0], -1), layer, self.visible)


class DraftAttention:
    """The attention of all steps of a draft but the last, which only chooses tokens."""

    def __init__(self, model_runner: Any, topk: int, steps: int) -> None:
        self._topk = topk
        self._steps = steps
        self._table = model_runner.req_to_token_pool.req_to_token
        self.attn_backends = [_DraftStep(model_runner) for _ in range(steps - 1)]

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Before the first step."""
        for step, backend in enumerate(self.attn_backends):
            backend.visible = branches_of(
                self._table,
                forward_batch.req_pool_indices,
                forward_batch.seq_lens,
                self._topk,
                self._steps,
                step + 1,
            )
