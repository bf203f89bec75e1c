"""The exchange as an executable specification: all ranks in one process, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class RankInput(NamedTuple):
    """What one rank brings to a call."""

    x: Tensor
    """[tokens, hidden]."""
    topk_ids: Tensor
    """[tokens, topk] int32 or int64, -1 = not routed."""
    topk_weights: Tensor
    """[tokens, topk] float32."""


class RankRows(NamedTuple):
    """What one rank's experts have to see."""

    rows: Tensor
    """[total, hidden], bit-exact copies."""
    counts: Tensor
    """[experts of the rank] int64."""
    origins: list[tuple[int, int, int]]
    """(source rank, token, k) of each row."""


Experts = Callable[[Tensor, Tensor, int], Tensor]
"""(rows [total, hidden], counts [experts of the rank], first expert) -> out [total, hidden]."""


class Expectation(NamedTuple):
    """What every rank has to see and get, indexed by rank."""

    rows: list[RankRows]
    combined: list[Tensor]


def exchange(inputs: Sequence[RankInput], num_experts: int, experts: Experts) -> Expectation:
    """Dispatch, experts and combine of all ranks."""
    rows = dispatch(inputs, num_experts)
    local = num_experts // len(inputs)
    outs = [experts(mine.rows, mine.counts, rank * local) for rank, mine in enumerate(rows)]
    return Expectation(rows, combine(inputs, rows, outs))


def dispatch(inputs: Sequence[RankInput], num_experts: int) -> list[RankRows]:
    """The rows of every rank in (local expert, source rank, token, k) order."""
    by_expert: list[list[tuple[int, int, int]]] = [[] for _ in range(num_experts)]
    for source, given in enumerate(inputs):
        for token, ids in enumerate(given.topk_ids.tolist()):
            for k, expert in enumerate(ids):
                if expert >= 0:
                    by_expert[expert].append((source, token, k))
    local = num_experts // len(inputs)
    ranks = []
    for first in range(0, num_experts, local):
        own = by_expert[first : first + local]
        origins = [origin for expert in own for origin in expert]
        rows = [inputs[source].x[token] for source, token, _ in origins]
        ranks.append(
            RankRows(
                rows=torch.stack(rows) if rows else inputs[0].x.new_empty((0, inputs[0].x.shape[1])),
                counts=torch.tensor([len(expert) for expert in own], dtype=torch.int64),
                origins=origins,
            )
        )
    return ranks


def combine(inputs: Sequence[RankInput], rows: Sequence[RankRows], outs: Sequence[Tensor]) -> list[Tensor]:
    """Sums of every rank: float32, in k order from zero, product and sum rounded separately, cast once at the end."""
    found = {}
    for mine, out in zip(rows, outs, strict=True):
        for origin, row in zip(mine.origins, out.float().numpy(), strict=True):
            found[origin] = row
    combined = []
    for source, given in enumerate(inputs):
        total = np.zeros(given.x.shape, dtype=np.float32)
        weights = given.topk_weights.numpy()
        with np.errstate(all="ignore"):
            for token in range(total.shape[0]):
                for k in range(given.topk_ids.shape[1]):
                    row = found.get((source, token, k))
                    if row is not None:
                        total[token] = total[token] + weights[token, k] * row
        combined.append(torch.from_numpy(total).to(given.x.dtype))
    return combined


def scale_by_expert(rows: Tensor, counts: Tensor, first_expert: int) -> Tensor:
    """An expert that depends on which one it is, so that a row computed by the wrong expert is noticed."""
    expert = (torch.arange(len(counts)) + first_expert + 1).repeat_interleave(counts).unsqueeze(1)
    return (rows.float() * (expert * 0.75) - expert).to(rows.dtype)


def scale_by_place(rows: Tensor, counts: Tensor, first_expert: int) -> Tensor:
    """Also depends on the place of the row, so that equal rows in the wrong order are noticed."""
    place = torch.arange(len(rows)).unsqueeze(1)
    return (scale_by_expert(rows, counts, first_expert).float() + place * 0.125).to(rows.dtype)
