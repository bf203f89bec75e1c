"""Sparse attention: the indexer that picks keys for each token, and attention over those that it picked.

What is refused is what the documentation of CANN 9.1 excludes on A2 and A3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tests.npu.operators.attention import causal, paged
from tests.npu.operators.declaration import operator
from tests.npu.operators.refusals import NotEmulated, WrongArguments

INDEXER, ATTENTION = "npu_lightning_indexer", "npu_sparse_flash_attention"
MOST_INDEX_HEADS, INDEX_WIDTH = 64, 128
COUNTS = {*range(1, 2049), *range(3072, 8193, 1024)}
"""How many keys an indexer may pick for a token."""

HEADS = (1, 2, 4, 8, 16, 32, 64, 128)
LATENT_WIDTH, ROPE_WIDTH = 512, 64
PAGE_UNIT, LARGEST_PAGE = 16, 1024
ABSORBED = 2
"""The attention mode in which values are the latent keys."""

CAUSAL = 3
HALVES = (torch.bfloat16, torch.float16)


def refuse_modes(name: str, layout_query: str, layout_keys: str, sparse_mode: int) -> None:
    if (layout_query, layout_keys) != ("TND", "PA_BSND"):
        raise NotEmulated(name, f"queries in {layout_query!r} and keys in {layout_keys!r}")
    if sparse_mode not in (0, CAUSAL):
        raise WrongArguments(name, f"sparse_mode={sparse_mode} is neither 0 nor {CAUSAL}")


def refuse_tensor(
    name: str, what: str, tensor: Tensor | None, shape: tuple[int | None, ...], *dtypes: torch.dtype
) -> None:
    """Refuses one that is missing, empty or not contiguous, of other dtypes or of another shape; None is any size."""
    if tensor is None:
        raise WrongArguments(name, f"{what} is not given")
    if tensor.dtype not in dtypes:
        raise WrongArguments(name, f"{what} is {tensor.dtype}, not {' or '.join(map(str, dtypes))}")
    if len(shape) != tensor.dim() or any(
        wanted not in (None, size) for wanted, size in zip(shape, tensor.shape, strict=True)
    ):
        raise WrongArguments(name, f"{what} is {list(tensor.shape)}, not {list(shape)}")
    if not tensor.numel():
        raise WrongArguments(name, f"{what} is empty")
    if not tensor.is_contiguous():
        raise WrongArguments(name, f"{what} is not contiguous")


def refuse_pages(name: str, cache: Tensor) -> None:
    size = cache.shape[1]
    if size % PAGE_UNIT or size > LARGEST_PAGE:
        raise WrongArguments(name, f"pages have {size} keys, not a multiple of {PAGE_UNIT} up to {LARGEST_PAGE}")


def refuse_batch(name: str, ends: Tensor | None, lengths: Tensor | None, table: Tensor | None) -> None:
    """`ends` [sequences] of the rows of each, `lengths` [sequences] of its keys, and `table` [sequences, pages]."""
    refuse_tensor(name, "actual_seq_lengths_query", ends, (None,), torch.int32)
    sequences = len(ends) if ends is not None else 0
    refuse_tensor(name, "the lengths of the keys", lengths, (sequences,), torch.int32)
    refuse_tensor(name, "block_table", table, (sequences, None), torch.int32)


class Sequence(NamedTuple):
    """The rows of a sequence among all of the batch, the number of its keys, and which pages have them."""

    rows: slice
    keys: int
    table: Tensor


def sequences(name: str, rows: int, cache: Tensor, ends: Tensor, lengths: Tensor, table: Tensor) -> Iterator[Sequence]:
    """Refuses ends that go back or past the last row, and pages that are not in the cache."""
    begin = 0
    for end, keys, own in zip(ends.tolist(), lengths.tolist(), table, strict=True):
        if not begin <= end <= rows:
            raise WrongArguments(name, f"actual_seq_lengths_query goes from {begin} to {end} of {rows} rows")
        if keys < 0:
            raise WrongArguments(name, f"a sequence has {keys} keys")
        used = own[: -(-keys // cache.shape[1])]
        if ((used < 0) | (used >= len(cache))).any():
            raise WrongArguments(name, f"pages {used.tolist()} of {len(cache)}")
        yield Sequence(slice(begin, end), keys, own)
        begin = end


def visible(sparse_mode: int, rows: int, keys: int) -> Tensor:
    """Which keys [rows, keys] each row sees."""
    return causal(rows, keys) if sparse_mode == CAUSAL else torch.ones(rows, keys, dtype=torch.bool)


def _picked_shapes(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    actual_seq_lengths_query: Tensor | None,
    actual_seq_lengths_key: Tensor | None,
    block_table: Tensor | None,
    layout_query: str,
    layout_key: str,
    sparse_count: int,
    sparse_mode: int,
) -> tuple[Tensor, Tensor]:
    refuse_modes(INDEXER, layout_query, layout_key, sparse_mode)
    refuse_tensor(INDEXER, "query", query, (None, None, INDEX_WIDTH), *HALVES)
    rows, heads, _ = query.shape
    if heads > MOST_INDEX_HEADS:
        raise WrongArguments(INDEXER, f"{heads} heads, not at most {MOST_INDEX_HEADS}")
    refuse_tensor(INDEXER, "key", key, (None, None, 1, INDEX_WIDTH), query.dtype)
    refuse_pages(INDEXER, key)
    refuse_tensor(INDEXER, "weights", weights, (rows, heads), query.dtype, torch.float32)
    refuse_batch(INDEXER, actual_seq_lengths_query, actual_seq_lengths_key, block_table)
    if sparse_count not in COUNTS:
        raise WrongArguments(INDEXER, f"sparse_count={sparse_count}: up to 2048, or a multiple of 1024 up to 8192")
    return query.new_empty((rows, 1, sparse_count), dtype=torch.int32), query.new_empty(0)


@operator(f"npu::{INDEXER}", shapes=_picked_shapes)
def lightning_indexer(
    query: Tensor,
    key: Tensor,
    weights: Tensor,
    actual_seq_lengths_query: Tensor,
    actual_seq_lengths_key: Tensor,
    block_table: Tensor,
    layout_query: str,
    layout_key: str,
    sparse_count: int,
    sparse_mode: int,
) -> tuple[Tensor, Tensor]:
    """The `sparse_count` keys of the highest scores, for each row of query [rows, heads, width].

    A score is the sum over heads of a weight [rows, heads] times what is above zero of the product with the key; of
    equal ones the earlier key comes first. Positions are within the sequence, and -1 where a row sees fewer keys.
    """
    batch = actual_seq_lengths_query, actual_seq_lengths_key, block_table
    out, values = _picked_shapes(query, key, weights, *batch, layout_query, layout_key, sparse_count, sparse_mode)
    out.zero_()
    for own in sequences(INDEXER, len(query), key, *batch):
        keys = paged(key, own.table, own.keys, INDEXER)[:, 0]
        products = torch.einsum("rhw,kw->rhk", query[own.rows].float(), keys.float()).relu()
        scores = torch.einsum("rhk,rh->rk", products, weights[own.rows].float())
        seen = visible(sparse_mode, len(scores), own.keys)
        order = scores.masked_fill(~seen, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        best = order[:, :sparse_count].int()
        best[torch.arange(best.shape[1])[None, :] >= seen.sum(dim=-1)[:, None]] = -1
        out[own.rows] = -1
        out[own.rows, 0, : best.shape[1]] = best
    return out, values


def _attended_shapes(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    sparse_indices: Tensor,
    block_table: Tensor | None,
    actual_seq_lengths_query: Tensor | None,
    actual_seq_lengths_kv: Tensor | None,
    query_rope: Tensor | None,
    key_rope: Tensor | None,
    sparse_block_size: int,
    layout_query: str,
    layout_kv: str,
    sparse_mode: int,
    attention_mode: int,
    return_softmax_lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    refuse_modes(ATTENTION, layout_query, layout_kv, sparse_mode)
    if sparse_block_size != 1:
        raise NotEmulated(ATTENTION, f"sparse_block_size={sparse_block_size}")
    if attention_mode != ABSORBED:
        raise WrongArguments(ATTENTION, f"attention_mode={attention_mode} is not {ABSORBED}")
    if return_softmax_lse:
        raise WrongArguments(ATTENTION, "return_softmax_lse with keys in pages")
    refuse_tensor(ATTENTION, "query", query, (None, None, LATENT_WIDTH), *HALVES)
    rows, heads, _ = query.shape
    if heads not in HEADS:
        raise WrongArguments(ATTENTION, f"{heads} heads, not one of {HEADS}")
    refuse_tensor(ATTENTION, "key", key, (None, None, 1, LATENT_WIDTH), query.dtype)
    refuse_pages(ATTENTION, key)
    refuse_tensor(ATTENTION, "value", value, tuple(key.shape), query.dtype)
    refuse_tensor(ATTENTION, "query_rope", query_rope, (rows, heads, ROPE_WIDTH), query.dtype)
    refuse_tensor(ATTENTION, "key_rope", key_rope, (*key.shape[:3], ROPE_WIDTH), query.dtype)
    refuse_tensor(ATTENTION, "sparse_indices", sparse_indices, (rows, 1, None), torch.int32)
    refuse_batch(ATTENTION, actual_seq_lengths_query, actual_seq_lengths_kv, block_table)
    nothing = query.new_empty(0, dtype=torch.float32)
    return torch.empty_like(query), nothing, torch.empty_like(nothing)


@operator(f"npu::{ATTENTION}", shapes=_attended_shapes)
def sparse_flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sparse_indices: Tensor,
    scale_value: float,
    block_table: Tensor,
    actual_seq_lengths_query: Tensor,
    actual_seq_lengths_kv: Tensor,
    query_rope: Tensor,
    key_rope: Tensor,
    sparse_block_size: int,
    layout_query: str,
    layout_kv: str,
    sparse_mode: int,
    attention_mode: int,
    return_softmax_lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row over the keys at its positions in `sparse_indices` [rows, 1, count], of which -1 ends the list.

    A row that sees nothing is zero; one of no sequence is NaN.
    """
    batch = actual_seq_lengths_query, actual_seq_lengths_kv, block_table
    out, *statistics = _attended_shapes(
        query, key, value, sparse_indices, block_table, *batch[:2], query_rope, key_rope, sparse_block_size,
        layout_query, layout_kv, sparse_mode, attention_mode, return_softmax_lse,
    )  # fmt: skip
    out.fill_(torch.nan)
    joined = torch.cat([query, query_rope], dim=-1).float()
    for own in sequences(ATTENTION, len(query), key, *batch):
        places = sparse_indices[own.rows, 0].long()
        wanted = places >= 0
        if (wanted[:, 1:] & ~wanted[:, :-1]).any():
            raise WrongArguments(ATTENTION, "sparse_indices name a key behind a -1")
        if (places >= own.keys).any():
            raise WrongArguments(ATTENTION, f"sparse_indices name key {int(places.max())} of {own.keys}")
        if not own.keys:
            out[own.rows] = 0
            continue
        places = places.clamp(min=0)
        caches = (key, key_rope, value)
        latent, turned, values = (paged(cache, own.table, own.keys, ATTENTION)[:, 0] for cache in caches)
        seen = visible(sparse_mode, len(places), own.keys).gather(1, places) & wanted
        keys = torch.cat([latent, turned], dim=-1).float()
        scores = torch.einsum("rhw,rkw->rhk", joined[own.rows], keys[places]) * scale_value
        weights = scores.masked_fill(~seen[:, None], -torch.inf).softmax(dim=-1)
        blind = ~seen.any(dim=-1)
        weights = weights.masked_fill(blind[:, None, None], 0.0)
        out[own.rows] = torch.einsum("rhk,rkw->rhw", weights, values.float()[places]).to(out.dtype)
    return out, *statistics
