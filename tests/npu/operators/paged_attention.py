"""Attention over paged keys by the operators of the ATB library, which write into `out`."""

from __future__ import annotations

from torch import Tensor

from tests.npu.operators.attention import attend, causal, paged
from tests.npu.operators.declaration import nothing, operator
from tests.npu.operators.refusals import WrongArguments


def _check_heads(name: str, cache: Tensor, heads: int) -> None:
    if cache.dim() != 4 or cache.shape[2] != heads:
        raise WrongArguments(name, f"a cache {list(cache.shape)} is not [pages, page size, {heads}, width]")


@operator("atb::_npu_paged_attention", shapes=nothing)
def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    out: Tensor,
) -> None:
    """Each row of query [sequences, heads, width] sees the `context_lens` keys of its sequence."""
    name = "_npu_paged_attention"
    _check_heads(name, key_cache, num_kv_heads)
    for sequence, length in enumerate(context_lens.tolist()):
        keys = paged(key_cache, block_table[sequence], length, name)
        values = paged(value_cache, block_table[sequence], length, name)
        row = query[sequence].view(1, num_heads, -1)
        out[sequence] = attend(row, keys, values, scale_value).out[0].view(out.shape[1:])


@operator("atb::_npu_paged_attention_mla", shapes=nothing)
def paged_attention_mla(
    query: Tensor,
    key_cache: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    block_table: Tensor,
    context_lens: Tensor,
    mla_vheadsize: int,
    out: Tensor,
) -> None:
    """The same over latent keys; values are the first `mla_vheadsize` numbers of each key."""
    values = key_cache[..., :mla_vheadsize]
    paged_attention(
        query, key_cache, values, num_kv_heads, num_heads, scale_value, block_table, context_lens, out,
    )  # fmt: skip


@operator("atb::_npu_flash_attention_qlens", shapes=nothing)
def flash_attention_qlens(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    mask: Tensor,
    seq_len: Tensor,
    context_lens: Tensor,
    num_kv_heads: int,
    num_heads: int,
    scale_value: float,
    out: Tensor,
) -> None:
    """The last `seq_len` tokens of each sequence of `context_lens`, each over the keys up to its own.

    `query` and `out` are [tokens, heads x width]; what lies behind the last token is left as it is.
    """
    name = "_npu_flash_attention_qlens"
    _check_heads(name, key_cache, num_kv_heads)
    if mask.shape != (128, 128):
        raise WrongArguments(name, f"a mask {list(mask.shape)} is not [128, 128]")
    begin = 0
    for sequence, (rows, length) in enumerate(zip(seq_len.tolist(), context_lens.tolist(), strict=True)):
        keys = paged(key_cache, block_table[sequence], length, name)
        values = paged(value_cache, block_table[sequence], length, name)
        part = slice(begin, begin + rows)
        attended = attend(query[part].unflatten(1, (num_heads, -1)), keys, values, scale_value, causal(rows, length))
        out[part] = attended.out.flatten(1).to(out.dtype)
        begin += rows
