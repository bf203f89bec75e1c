"""Tokens and where they go, made from a seed so that every rank can also make those of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.launch.bench.cases import Case

ZIPF_EXPONENT = 1.0
SLICE_TOKENS = 256
"""Tokens that are made at a time, each slice from a seed of its own."""


class Batch(NamedTuple):
    """What one rank brings: x [tokens, hidden] bfloat16, ids [tokens, topk] int64, weights [tokens, topk] float32."""

    x: Tensor
    ids: Tensor
    weights: Tensor


def make_batch(case: Case, rank: int) -> Batch:
    """The tokens of `rank`, the same whoever calls it. Weights of a token sum up to one."""
    generator = torch.Generator().manual_seed(_seed(case, rank, 1))
    x = torch.empty(case.tokens, case.hidden, dtype=torch.bfloat16)
    for begin, tokens in token_slices(case, rank):
        x[begin : begin + len(tokens)] = tokens
    weights = torch.rand(case.tokens, case.topk, generator=generator).softmax(dim=1)
    return Batch(x, make_ids(case, rank), weights)


def token_slices(case: Case, rank: int) -> Iterator[tuple[int, Tensor]]:
    """x of `rank` in pieces, each with the token that it begins with; nobody needs all of another rank's at once."""
    for begin in range(0, case.tokens, SLICE_TOKENS):
        generator = torch.Generator().manual_seed(_seed(case, rank, 3) + (begin << 32))
        shape = (min(SLICE_TOKENS, case.tokens - begin), case.hidden)
        yield begin, torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator)


def make_ids(case: Case, rank: int) -> Tensor:
    """ids [tokens, topk] int64 of `rank`.

    uniform: distinct experts, each equally likely. zipf: distinct experts, the i-th most popular drawn with weight
    1 / i; ranks agree on the order of popularity. one-expert: every id names the same expert.
    """
    shape = (case.tokens, case.topk)
    if case.routing == "one-expert":
        return torch.full(shape, case.seed % case.experts, dtype=torch.int64)
    generator = torch.Generator().manual_seed(_seed(case, rank, 2))
    popularity = torch.ones(case.experts)
    if case.routing == "zipf":
        everyone = torch.Generator().manual_seed(case.seed)
        order = torch.randperm(case.experts, generator=everyone)
        popularity[order] = torch.arange(1, case.experts + 1, dtype=torch.float32) ** -ZIPF_EXPONENT
    # Drawing without replacement: the k greatest of log(weight) + Gumbel noise.
    exponential = torch.empty(case.tokens, case.experts).exponential_(generator=generator)
    noise = -exponential.clamp_min(1e-30).log()
    return (popularity.log() + noise).topk(case.topk, dim=1).indices


def traffic(case: Case) -> Tensor:
    """int64 [ranks, experts]: rows that each rank sends to each expert."""
    counted = [torch.bincount(make_ids(case, rank).flatten(), minlength=case.experts) for rank in range(case.ranks)]
    return torch.stack(counted)


def _seed(case: Case, rank: int, stream: int) -> int:
    return (case.seed * 1_000_003 + rank) * 16 + stream
