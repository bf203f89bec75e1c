"""Decode attention on the host that a graph can hold: no loop over requests, no shape that depends on a value.

Keys and values of every request are gathered to one length and what lies past the end of a request is masked. Prefill
is SGLang's own `torch_native`, and so is decode of layers with sliding windows or cross attention, in eager steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from sglang.srt.layers.attention.base_attn_backend import SharedReadEnds
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.attention.verify_mask import VerifyMask
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.runner_utils.capture_mode import get_capture_attention_variant
from sglang.srt.speculative.eagle_utils import TreeMaskMode
from torch import Tensor

from sglang_ascend_moe.serving.host.graph_buckets import Buckets, label_of, length_of, longest
from sglang_ascend_moe.serving.host.tree_attention import see_trees

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch


class KeyLengths:
    """SGLang's choice among the graphs of one batch size: by the longest request."""

    def __init__(self, buckets: Buckets, ahead: int) -> None:
        """ahead: tokens that a step writes behind those of `seq_lens`."""
        self._buckets, self._ahead = buckets, ahead
        # The largest first: the others fit into its memory.
        self.capture_labels = tuple(map(label_of, reversed(buckets.lengths)))

    def select(self, forward_batch: ForwardBatch) -> str:
        return label_of(self._buckets.length_for(longest(forward_batch, self._ahead)))


class _Gathered(NamedTuple):
    """Where the keys of a batch lie: slots int [batch * length], and mask [batch, 1, 1, length], 0 or -inf."""

    slots: Tensor
    mask: Tensor

    def all_of(self, cache: Tensor, dtype: torch.dtype) -> Tensor:
        """The batch's keys or values [batch, heads, length, head size] from a cache [slots, heads, head size]."""
        found = cache.index_select(0, self.slots)
        return found.to(dtype).view(self.mask.shape[0], -1, *cache.shape[1:]).transpose(1, 2)


class HostAttention(TorchNativeAttnBackend):
    """SGLang's attention backend `ascend_moe_host`."""

    def __init__(self, model_runner: Any, buckets: Buckets) -> None:
        super().__init__(model_runner)
        self.buckets = buckets
        self._dtype = model_runner.dtype
        self._length = 0
        self._gathered: _Gathered | None = None
        self._verify_mask: VerifyMask | None = None

    @property
    def verify_mask(self) -> VerifyMask | None:
        """Where SGLang writes the masks of trees, for a graph to read them there."""
        return self._verify_mask

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Makes room for the masks of trees; what else a graph needs, it computes."""
        size = max_num_tokens // max_bs
        if size > 1:
            buffer = torch.zeros(max_bs * size**2, dtype=torch.bool)
            self._verify_mask = VerifyMask(buffer=buffer, mode=TreeMaskMode.QLEN_ONLY, max_bs=max_bs)

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """The length of a padded row: attention over nothing would give NaN."""
        return 1

    get_cpu_graph_seq_len_fill_value = get_cuda_graph_seq_len_fill_value

    def shared_read_ends(self, _mode: Any) -> SharedReadEnds:
        """Steps of the host are over when they return: there is no event to wait for."""
        return SharedReadEnds.UNKNOWN

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        self._gathered = None
        mode = forward_batch.forward_mode
        trees = mode.is_target_verify()
        if (mode.is_decode() or trees or mode.is_draft_extend_v2()) and forward_batch.batch_size:
            ahead = forward_batch.spec_info.draft_token_num if trees else 0
            self._length = self.buckets.length_for(longest(forward_batch, ahead))
            self.init_forward_metadata_in_graph(forward_batch)

    def init_forward_metadata_out_graph(self, _forward_batch: ForwardBatch, in_capture: bool = False) -> None:
        if in_capture:
            self._length = length_of(get_capture_attention_variant())

    def init_forward_metadata_in_graph(self, forward_batch: ForwardBatch) -> None:
        """Once per step: which slots are gathered, and the mask. Part of the graph."""
        if not forward_batch.forward_mode.is_decode():
            see_trees(self, forward_batch, self._length)
            return
        lengths = forward_batch.seq_lens[:, None]
        positions = torch.arange(self._length, dtype=lengths.dtype)[None]
        # Past its end a request reads its last token again, because other slots may hold anything, NaN included.
        inside = torch.minimum(positions, lengths - 1)
        table = self.req_to_token_pool.req_to_token.index_select(0, forward_batch.req_pool_indices)
        mask = torch.zeros(inside.shape, dtype=self._dtype).masked_fill_(positions >= lengths, float("-inf"))
        self._gathered = _Gathered(table.gather(1, inside).flatten(), mask[:, None, None])

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> Tensor:
        windowed = layer.sliding_window_size is not None and layer.sliding_window_size > -1
        gathered = self._gathered
        if gathered is None or windowed or layer.is_cross_attention or forward_batch.encoder_lens is not None:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        pool = self.token_to_kv_pool
        if save_kv_cache and k is not None and v is not None:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc), k, v)
        batch, heads = gathered.mask.shape[0], layer.tp_k_head_num
        # The query heads that share a key head are its rows, so that keys need not be repeated.
        query = q.reshape(batch, heads, layer.tp_q_head_num // heads, layer.qk_head_dim)
        attended = torch.nn.functional.scaled_dot_product_attention(
            query,
            gathered.all_of(pool.get_key_buffer(layer.layer_id), query.dtype),
            gathered.all_of(pool.get_value_buffer(layer.layer_id), query.dtype),
            attn_mask=gathered.mask,
            scale=layer.scaling,
        )
        return attended.reshape(batch, layer.tp_q_head_num * layer.v_head_dim)
