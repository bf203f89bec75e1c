"""Attention of speculative steps on the host: trees of draft tokens that are verified, and branches that are drafted.

SGLang's `torch_native` attends token after token, or to a whole text at once. Here all requests of a batch are gathered
to one length, and a mask says what a token sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.runner_utils.capture_mode import get_capture_attention_variant
from torch import Tensor

from sglang_ascend_moe.serving.host.graph_buckets import Buckets, length_of, longest

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class Visible(NamedTuple):
    """What queries see. slots: [B, L] where keys lie; mask: [B, Q, L], True where a query sees the key."""

    slots: Tensor
    mask: Tensor

    def all_of(self, cache: Tensor) -> Tensor:
        """Keys or values [B, L, heads, head size] from a cache [slots, heads, head size]."""
        return cache.index_select(0, self.slots.flatten()).view(*self.slots.shape, *cache.shape[1:])


def attend(backend: Any, q: Tensor, layer: RadixAttention, visible: Visible) -> Tensor:
    """q: [rows, heads * head size], B * Q of them and perhaps padding behind, which gives zeros."""
    batch, queries, _ = visible.mask.shape
    out = q.new_zeros(q.shape[0], layer.tp_q_head_num * layer.v_head_dim)
    if batch == 0:
        return out
    pool = backend.token_to_kv_pool
    keys = visible.all_of(pool.get_key_buffer(layer.layer_id)).to(q.dtype)
    values = visible.all_of(pool.get_value_buffer(layer.layer_id)).to(q.dtype)
    heads, sharing = layer.tp_k_head_num, layer.tp_q_head_num // layer.tp_k_head_num
    # The query heads that share a key head are its rows, so that keys need not be repeated.
    query = q[: batch * queries].view(batch, queries, heads, sharing, layer.qk_head_dim).permute(0, 2, 3, 1, 4)
    attended = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads, sharing * queries, layer.qk_head_dim),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=visible.mask.repeat(1, sharing, 1)[:, None],
        scale=layer.scaling,
    )
    rows = attended.view(batch, heads, sharing, queries, layer.v_head_dim).permute(0, 3, 1, 2, 4)
    out[: batch * queries] = rows.reshape(batch * queries, -1)
    return out


def trees_of(table: Tensor, requests: Tensor, prefixes: Tensor, trees: Tensor, length: int) -> Visible:
    """table: [any, context] slots of the requests. prefixes: [B] tokens before a tree; trees: [B, Q, Q] bool.

    length: L, no less than a prefix and its tree."""
    batch, size, _ = trees.shape
    columns = torch.arange(length, dtype=prefixes.dtype)[None]
    place = columns - prefixes[:, None]
    # Past its end a request reads its last token again, because other slots may hold anything, NaN included.
    inside = torch.minimum(columns, prefixes[:, None] + size - 1)
    slots = table.index_select(0, requests).gather(1, inside)
    within = trees.gather(2, place.clamp(0, size - 1)[:, None].expand(batch, size, -1))
    inside = (place >= 0) & (place < size)
    return Visible(slots, (place < 0)[:, None] | (inside[:, None] & within))


def branches_of(
    table: Tensor, requests: Tensor, prefixes: Tensor, branches: int, stride: int, drafted: int, length: int
) -> Visible:
    """Each of `branches` branches of a request sees the prefix and `drafted` tokens of its own; Q is 1.

    The slots of a branch begin `stride` behind those of the one before. length: L, no less than a prefix and `drafted`.
    """
    lengths = _of_each_branch(prefixes, branches)[:, None] + drafted
    columns = torch.arange(length, dtype=prefixes.dtype)[None]
    start = (torch.arange(branches) * stride).expand(len(prefixes), branches).reshape(-1, 1)
    place = torch.minimum(columns, lengths - 1)
    place = torch.where(place >= lengths - drafted, place + start, place)
    slots = table.index_select(0, _of_each_branch(requests, branches)).gather(1, place)
    return Visible(slots, (columns < lengths)[:, None])


def _of_each_branch(values: Tensor, branches: int) -> Tensor:
    return values[:, None].expand(-1, branches).reshape(-1)


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
        known = see_trees(backend, forward_batch)
    return attend(backend, q, layer, known[1])


def see_trees(backend: Any, forward_batch: ForwardBatch, length: int | None = None) -> tuple[ForwardBatch, Visible]:
    """What queries see in all layers of this step. length: of the keys; None: of the longest request."""
    backend._visible_to = (forward_batch, _visible(backend, forward_batch, length))
    return backend._visible_to


def save(
    backend: Any, k: Tensor, v: Tensor, layer: RadixAttention, forward_batch: ForwardBatch, save_kv_cache: bool
) -> None:
    """Write keys and values into the cache."""
    if save_kv_cache and k is not None and v is not None:
        places = KVWriteLoc(forward_batch.out_cache_loc, backend.swa_out_cache_loc)
        backend.token_to_kv_pool.set_kv_buffer(layer, places, k, v)


def _visible(backend: Any, forward_batch: ForwardBatch, length: int | None) -> Visible:
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
    return trees_of(table, requests, prefixes, trees, int(prefixes.max()) + size if length is None else length)


class _DraftStep(TorchNativeAttnBackend):
    """One step of a draft."""

    visible: Visible

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """The length of a padded row: attention over nothing would give NaN."""
        return 1

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
        self._length = 0
        # Those of the draft model's own attention; None if no graph holds that.
        self.buckets: Buckets | None = getattr(model_runner.attn_backend, "buckets", None)
        self.attn_backends = [_DraftStep(model_runner) for _ in range(steps - 1)]

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Nothing: what a graph needs, it computes."""

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Before the first step."""
        most = longest(forward_batch, self._steps)
        self._length = most if self.buckets is None else self.buckets.length_for(most)
        self.init_forward_metadata_in_graph(forward_batch)

    def init_forward_metadata_out_graph(self, _forward_batch: ForwardBatch, in_capture: bool = False) -> None:
        if in_capture:
            self._length = length_of(get_capture_attention_variant())

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch) -> None:
        """Part of the graph."""
        for step, backend in enumerate(self.attn_backends):
            backend.visible = branches_of(
                self._table,
                forward_batch.req_pool_indices,
                forward_batch.seq_lens,
                self._topk,
                self._steps,
                step + 1,
                self._length,
            )
