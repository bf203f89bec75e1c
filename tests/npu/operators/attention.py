"""Attention of one sequence, and its keys out of a paged cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tests.npu.operators.refusals import WrongArguments


class Attended(NamedTuple):
    """`out` [rows, heads, value width] and `log_sum` [rows, heads] of the exponentials, both fp32, not yet rounded."""

    out: Tensor
    log_sum: Tensor


def attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, visible: Tensor | None = None) -> Attended:
    """Query [rows, heads, width] over keys [columns, key heads, width]; `visible` [rows, columns] says who sees whom.

    A row that sees nothing is zero, and its logarithm infinite.
    """
    key_heads = keys.shape[1]
    grouped = query.float().unflatten(1, (key_heads, query.shape[1] // key_heads))
    scores = torch.einsum("rkgw,ckw->rkgc", grouped, keys.float()) * scale
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None, :], -torch.inf)
    log_sum = scores.logsumexp(dim=-1)
    blind = log_sum == -torch.inf
    weights = (scores - log_sum[..., None]).exp().masked_fill(blind[..., None], 0.0)
    out = torch.einsum("rkgc,ckv->rkgv", weights, values.float())
    return Attended(out.flatten(1, 2), log_sum.masked_fill(blind, torch.inf).flatten(1, 2))


def causal(rows: int, columns: int, *, before: int | None = None, after: int = 0) -> Tensor:
    """Which columns each row sees when the last row is level with the last column: `before` back, `after` ahead."""
    distance = torch.arange(columns)[None, :] - torch.arange(rows)[:, None] - (columns - rows)
    visible = distance <= after
    return visible if before is None else visible & (distance >= -before)


def paged(cache: Tensor, table: Tensor, length: int, operator: str) -> Tensor:
    """The first `length` rows of a sequence: its pages of `cache` [pages, page size, ...], as `table` lists them."""
    pages = -(-length // cache.shape[1])
    if pages > table.numel():
        raise WrongArguments(operator, f"{length} keys need {pages} pages, its block table has {table.numel()}")
    return cache[table[:pages].long()].flatten(0, 1)[:length]
