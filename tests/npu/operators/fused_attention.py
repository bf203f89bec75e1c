"""Fused inference attention in its two versions: dense and paged keys, sequences in a batch or one behind the other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.npu.operators.attention import Attended, attend, causal, paged
from tests.npu.operators.declaration import operator
from tests.npu.operators.refusals import NotEmulated, WrongArguments

FIRST, SECOND = "npu_fused_infer_attention_score", "npu_fused_infer_attention_score_v2"
# Layout of an argument -> that of the queries, and of the result. T are the tokens of all sequences.
LAYOUTS = {
    "BSH": ("BSH", "BSH"), "BSND": ("BSND", "BSND"), "BNSD": ("BNSD", "BNSD"), "TND": ("TND", "TND"),
    "NTD": ("NTD", "NTD"), "BNSD_BSND": ("BNSD", "BSND"), "BSH_BNSD": ("BSH", "BNSD"),
    "BSND_BNSD": ("BSND", "BNSD"), "NTD_TND": ("NTD", "TND"), "TND_NTD": ("TND", "NTD"),
}  # fmt: skip
COMPRESSED = 2048
"""Rows and columns of the mask that says no more than that there is one."""


class Request(NamedTuple):
    """The arguments of either version under one name each."""

    operator: str
    query: Tensor
    key: Tensor
    value: Tensor
    query_rope: Tensor | None
    key_rope: Tensor | None
    mask: Tensor | None
    query_lengths: Sequence[int] | None
    key_lengths: Sequence[int] | None
    block_table: Tensor | None
    block_size: int
    heads: int
    key_heads: int
    scale: float
    layout: str
    sparse_mode: int
    before: int
    after: int
    with_log_sum: bool


def by_token(tensor: Tensor, layout: str, heads: int) -> Tensor:
    """[batch, tokens, heads, width] or [tokens, heads, width] of a tensor in a layout."""
    match layout:
        case "BSH":
            return tensor.unflatten(2, (heads, -1))
        case "BNSD":
            return tensor.transpose(1, 2)
        case "NTD":
            return tensor.transpose(0, 1)
        case _:
            return tensor


def in_layout(tensor: Tensor, layout: str) -> Tensor:
    """The inverse of `by_token`."""
    match layout:
        case "BSH":
            return tensor.flatten(2)
        case "BNSD":
            return tensor.transpose(1, 2).contiguous()
        case "NTD":
            return tensor.transpose(0, 1).contiguous()
        case _:
            return tensor


def value_width(request: Request) -> int:
    if request.block_table is not None and request.value.dim() == 3:
        return request.value.shape[2] // request.key_heads
    if request.block_table is None and request.layout.startswith("BSH"):
        return request.value.shape[2] // request.key_heads
    return request.value.shape[-1]


def checked(request: Request) -> Request:
    """`request` with what it leaves out; refuses what is not emulated."""
    if request.layout not in LAYOUTS:
        raise NotEmulated(request.operator, f"input_layout={request.layout!r}")
    if request.sparse_mode not in (0, 3, 4):
        raise NotEmulated(request.operator, f"sparse_mode={request.sparse_mode}")
    if request.sparse_mode != 0 and (request.mask is None or list(request.mask.shape[-2:]) != [COMPRESSED, COMPRESSED]):
        raise WrongArguments(request.operator, f"sparse_mode={request.sparse_mode} needs a mask [2048, 2048]")
    if request.layout[0] in "TN" and (request.query_lengths is None or request.key_lengths is None):
        raise WrongArguments(request.operator, f"input_layout={request.layout!r} needs the lengths of the sequences")
    if request.block_table is not None:
        if request.key_lengths is None:
            raise WrongArguments(request.operator, "a block table needs the lengths of the keys")
        if request.key.dim() not in (3, 4):
            raise NotEmulated(request.operator, f"paged keys of {request.key.dim()} dimensions")
        if page_size(request.key) != request.block_size:
            raise WrongArguments(
                request.operator, f"block_size={request.block_size} and a cache {list(request.key.shape)}"
            )
    return request._replace(key_heads=request.key_heads or request.heads)


def page_size(cache: Tensor) -> int:
    """Of a cache [pages, page size, heads x width] or [pages, heads, page size, width]."""
    return cache.shape[1] if cache.dim() == 3 else cache.shape[2]


def result_shapes(request: Request) -> tuple[Tensor, Tensor]:
    """Attention and logarithms, without values."""
    request = checked(request)
    queries, results = LAYOUTS[request.layout]
    query = by_token(request.query, queries, request.heads)
    out = in_layout(query.new_empty((*query.shape[:-1], value_width(request))), results)
    log_sum = query.new_empty((*log_sum_shape(query, queries),) if request.with_log_sum else (0,), dtype=torch.float32)
    return out, log_sum


def log_sum_shape(query: Tensor, layout: str) -> tuple[int, ...]:
    """[tokens, heads, 1], or [batch, heads, tokens, 1]."""
    tokens, heads = query.shape[-3:-1]
    return (tokens, heads, 1) if "T" in layout else (query.shape[0], heads, tokens, 1)


class Part(NamedTuple):
    """One sequence: where its query rows lie, its queries, keys and values."""

    place: tuple[slice | int, ...]
    query: Tensor
    keys: Tensor
    values: Tensor


def ends_to_slices(ends: Sequence[int]) -> list[slice]:
    return [slice(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]


def lengths_of(lengths: Sequence[int] | None, batch: int, full: int) -> list[int]:
    """One length per sequence: a single one is for all, none means all that is there."""
    if lengths is None:
        return [full] * batch
    return list(lengths) * batch if len(lengths) == 1 else list(lengths)


def parts(request: Request) -> Iterator[Part]:
    """Every sequence of the batch."""
    layout = LAYOUTS[request.layout][0]
    query = with_rope(request.query, request.query_rope, layout, request.heads)
    places: list[tuple[slice | int, ...]]
    if "T" in layout:
        places = [(place,) for place in ends_to_slices(request.query_lengths or [])]
    else:
        rows = lengths_of(request.query_lengths, *query.shape[:2])
        places = [(sequence, slice(0, count)) for sequence, count in enumerate(rows)]
    if request.block_table is not None:
        lengths = lengths_of(request.key_lengths, len(places), 0)
        check_batch(request, len(places), lengths)
        halves = [request.key] if request.key_rope is None else [request.key, request.key_rope]
        *keys, values = (pages_by_token(cache, request.key_heads) for cache in (*halves, request.value))
        for sequence, place in enumerate(places):
            table, length = request.block_table[sequence], lengths[sequence]
            own = torch.cat([paged(cache, table, length, request.operator) for cache in keys], dim=-1)
            yield Part(place, query[place], own, paged(values, table, length, request.operator))
        return
    keys = with_rope(request.key, request.key_rope, layout, request.key_heads)
    values = by_token(request.value, layout, request.key_heads)
    if "T" in layout:
        columns = [(place,) for place in ends_to_slices(request.key_lengths or [])]
    else:
        counts = lengths_of(request.key_lengths, *keys.shape[:2])
        columns = [(sequence, slice(0, count)) for sequence, count in enumerate(counts)]
    check_batch(request, len(places), columns)
    for place, column in zip(places, columns, strict=False):
        yield Part(place, query[place], keys[column], values[column])


def check_batch(request: Request, sequences: int, lengths: Sequence[object]) -> None:
    table = request.block_table
    if len(lengths) < sequences or (table is not None and len(table) < sequences):
        rows = "" if table is None else f", {len(table)} rows of the block table"
        raise WrongArguments(request.operator, f"{sequences} sequences, {len(lengths)} lengths of keys{rows}")


def with_rope(tensor: Tensor, rope: Tensor | None, layout: str, heads: int) -> Tensor:
    """By token, with the numbers that carry the position behind the others."""
    tokens = by_token(tensor, layout, heads)
    return tokens if rope is None else torch.cat([tokens, by_token(rope, layout, heads)], dim=-1)


def pages_by_token(cache: Tensor, heads: int) -> Tensor:
    """[pages, page size, heads, width]."""
    return cache.unflatten(2, (heads, -1)) if cache.dim() == 3 else cache.transpose(1, 2)


def visible(request: Request, sequence: int, rows: int, columns: int) -> Tensor | None:
    """Which keys each row of a sequence sees."""
    match request.sparse_mode:
        case 3:
            return causal(rows, columns)
        case 4:
            return causal(rows, columns, before=request.before, after=request.after)
    if request.mask is None:
        return None
    # [rows, columns] for all, or the same with a batch in front, and heads between them.
    mask = request.mask.reshape(-1, *request.mask.shape[-2:])
    own = mask[sequence if len(mask) > 1 else 0][:rows, :columns].bool()
    # Without a mask these are passed over. They count from the first row and the first column.
    ahead = torch.arange(columns)[None, :] - torch.arange(rows)[:, None]
    return ~own & (ahead <= request.after) & (ahead >= -request.before)


def compute(request: Request) -> tuple[Tensor, Tensor]:
    """The attention, rounded once, and the logarithms. What belongs to no sequence is NaN."""
    request = checked(request)
    queries, results = LAYOUTS[request.layout]
    query = by_token(request.query, queries, request.heads)
    out = torch.full((*query.shape[:-1], value_width(request)), torch.nan, dtype=query.dtype)
    log_sum = torch.full(query.shape[:-1], torch.nan, dtype=torch.float32)
    for sequence, part in enumerate(parts(request)):
        seen = visible(request, sequence, len(part.query), len(part.keys))
        attended: Attended = attend(part.query, part.keys, part.values, request.scale, seen)
        out[part.place] = attended.out.to(out.dtype)
        log_sum[part.place] = attended.log_sum
    if not request.with_log_sum:
        return in_layout(out, results), log_sum.new_empty(0)
    shaped = log_sum if "T" in queries else log_sum.transpose(1, 2)
    return in_layout(out, results), shaped[..., None].contiguous()


def fill(request: Request, out: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Computes into what the caller has allocated; logarithms that nobody asked for leave theirs as it is."""
    check_allocated(request, out)
    attention, log_sum = compute(request)
    out[0].copy_(attention)
    if request.with_log_sum:
        out[1].copy_(log_sum)
    return out[0], out[1]


def check_allocated(request: Request, out: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What the caller has allocated, if it fits."""
    for made, wanted in zip(out, result_shapes(request), strict=True):
        if wanted.numel() and (made.shape, made.dtype) != (wanted.shape, wanted.dtype):
            raise WrongArguments(request.operator, f"out is {list(made.shape)}, not {list(wanted.shape)}")
    return out[0], out[1]


def workspace(request: Request) -> Tensor:
    """The emulated NPU needs none."""
    return request.query.new_empty(1, dtype=torch.uint8)


def first_version(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    atten_mask: Tensor | None,
    actual_seq_lengths: Sequence[int] | None,
    actual_seq_lengths_kv: Sequence[int] | None,
    block_table: Tensor | None,
    query_rope: Tensor | None,
    key_rope: Tensor | None,
    num_heads: int,
    scale: float,
    pre_tokens: int,
    next_tokens: int,
    input_layout: str,
    num_key_value_heads: int,
    sparse_mode: int,
    block_size: int,
    softmax_lse_flag: bool,
) -> Request:
    return Request(
        FIRST, query, key, value, query_rope, key_rope, atten_mask, actual_seq_lengths, actual_seq_lengths_kv,
        block_table, block_size, num_heads, num_key_value_heads, scale, input_layout, sparse_mode, pre_tokens,
        next_tokens, softmax_lse_flag,
    )  # fmt: skip


def second_version(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_rope: Tensor | None,
    key_rope: Tensor | None,
    atten_mask: Tensor | None,
    actual_seq_qlen: Sequence[int] | None,
    actual_seq_kvlen: Sequence[int] | None,
    block_table: Tensor | None,
    num_query_heads: int,
    num_key_value_heads: int,
    softmax_scale: float,
    pre_tokens: int,
    next_tokens: int,
    input_layout: str,
    sparse_mode: int,
    block_size: int,
    return_softmax_lse: bool,
) -> Request:
    return Request(
        SECOND, query, key, value, query_rope, key_rope, atten_mask, actual_seq_qlen, actual_seq_kvlen, block_table,
        block_size, num_query_heads, num_key_value_heads, softmax_scale, input_layout, sparse_mode, pre_tokens,
        next_tokens, return_softmax_lse,
    )  # fmt: skip


def of(version: Callable[..., Request], function: Callable[..., Any], *more: str) -> Callable[..., Any]:
    """`function` of the request that a version's arguments make, and of the arguments `more`."""
    made = inspect.signature(version)

    def call(**given: Any) -> Any:
        others = {name: given.pop(name) for name in more}
        return function(version(**given), **others)

    added = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in more]
    call.__signature__ = made.replace(parameters=[*made.parameters.values(), *added])  # type: ignore[attr-defined]
    return call


def declare(name: str, version: Callable[..., Request]) -> None:
    """The operator, the form that writes into `out`, and the one that says how much memory it needs."""
    operator(f"npu::{name}", shapes=of(version, result_shapes))(of(version, compute))
    operator(f"npu::_{name}_get_max_workspace", shapes=of(version, workspace))(of(version, workspace))
    into = lambda request, out, workspace: fill(request, out)  # noqa: ARG005, E731
    fits = lambda request, out, workspace: check_allocated(request, out)  # noqa: ARG005, E731
    operator(f"npu::{name}.out", shapes=of(version, fits, "out", "workspace"))(of(version, into, "out", "workspace"))


declare(FIRST, first_version)
declare(SECOND, second_version)


def _update_shapes(lse: list[Tensor], local_out: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.empty_like(local_out[0]), torch.empty_like(lse[0])


@operator("npu::npu_attention_update", shapes=_update_shapes)
def attention_update(lse: list[Tensor], local_out: list[Tensor], update_type: int) -> tuple[Tensor, Tensor]:
    """One attention of several over parts of the keys: `local_out` [rows, width] by their logarithms `lse` [rows]."""
    if update_type != 0:
        raise NotEmulated("npu_attention_update", f"update_type={update_type}")
    log_sums, parts_out = torch.stack(lse).float(), torch.stack(local_out).float()
    total = log_sums.logsumexp(dim=0)
    weights = (log_sums - total).exp()
    out = (weights[..., None] * parts_out).sum(dim=0)
    return out.to(local_out[0].dtype), total.to(lse[0].dtype)
