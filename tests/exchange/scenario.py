"""Inputs of all ranks, drawn from a description that fits a test id."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .reference import RankInput

Routing = Literal[
    "uniform", "sparse", "nothing", "one-expert", "hot-rank", "last-expert-only", "repeated-in-token", "distinct"
]
Rows = Literal["normal", "labelled", "constant", "special", "nan-where-unrouted"]
Weights = Literal["softmax", "signed", "zeros", "large", "special"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ID_DTYPES = {"int32": torch.int32, "int64": torch.int64}

_FULL_NANS = torch.tensor([2**31 - 1, -1], dtype=torch.int32).view(torch.float32)
"""NaN with every bit of the payload set: rounding that does not look carries them over to zero."""


class Scenario(NamedTuple):
    """One call of the exchange, described by values that print well and travel to any process."""

    tokens: tuple[int, ...] = (5, 3, 8, 1, 0, 7, 2, 6)
    """Tokens of rank i; ranks past the end start over."""
    experts_per_rank: int = 3
    hidden: int = 32
    topk: int = 2
    dtype: str = "bf16"
    id_dtype: str = "int64"
    routing: Routing = "uniform"
    rows: Rows = "normal"
    weights: Weights = "signed"
    seed: int = 0
    max_tokens: int | None = None
    """None = the most that any rank brings, and at least 1."""

    def num_experts(self, ranks: int) -> int:
        return self.experts_per_rank * ranks

    def tokens_of(self, ranks: int) -> list[int]:
        return [self.tokens[rank % len(self.tokens)] for rank in range(ranks)]

    def options(self, ranks: int) -> dict[str, object]:
        """The arguments of `create`."""
        return {
            "num_experts": self.num_experts(ranks),
            "hidden": self.hidden,
            "max_tokens": self.max_tokens or max(1, *self.tokens_of(ranks)),
            "topk": self.topk,
            "dtype": DTYPES[self.dtype],
        }

    def inputs(self, ranks: int) -> list[RankInput]:
        """The same on every rank and in every process."""
        generator = torch.Generator().manual_seed(self.seed)
        return [self._input(rank, tokens, ranks, generator) for rank, tokens in enumerate(self.tokens_of(ranks))]

    def _input(self, rank: int, tokens: int, ranks: int, generator: torch.Generator) -> RankInput:
        ids = self._ids(tokens, ranks, generator)
        x = self._x(rank, tokens, ids, generator)
        return RankInput(x, ids.to(ID_DTYPES[self.id_dtype]), self._weights(tokens, generator))

    def _ids(self, tokens: int, ranks: int, generator: torch.Generator) -> Tensor:
        experts, shape = self.num_experts(ranks), (tokens, self.topk)
        uniform = torch.randint(0, experts, shape, generator=generator)
        match self.routing:
            case "uniform":
                return uniform
            case "sparse":
                return uniform.masked_fill(torch.rand(shape, generator=generator) < 0.5, -1)
            case "nothing":
                return torch.full(shape, -1)
            case "one-expert":
                return torch.full(shape, experts // 2)
            case "last-expert-only":
                return torch.full(shape, experts - 1)
            case "hot-rank":
                hot = (ranks - 1) * self.experts_per_rank + uniform % self.experts_per_rank
                return torch.where(torch.rand(shape, generator=generator) < 0.9, hot, uniform)
            case "repeated-in-token":
                return uniform[:, :1].expand(shape).clone()
            case "distinct":
                return torch.rand((tokens, experts), generator=generator).argsort(dim=1)[:, : self.topk].clone()

    def _x(self, rank: int, tokens: int, ids: Tensor, generator: torch.Generator) -> Tensor:
        shape = (tokens, self.hidden)
        x = torch.randn(shape, generator=generator)
        match self.rows:
            case "labelled":
                x[:, 0], x[:, 1] = rank, torch.arange(tokens)
            case "constant":
                x = torch.ones(shape)
            case "special":
                values = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1e-40, 6e-8, 65504.0, 3e38])
                drawn = values[torch.randint(0, len(values), shape, generator=generator)]
                x = torch.where(torch.rand(shape, generator=generator) < 0.3, drawn, x)
            case "nan-where-unrouted":
                x[(ids < 0).all(dim=1)] = torch.nan
        return x.to(DTYPES[self.dtype])

    def _weights(self, tokens: int, generator: torch.Generator) -> Tensor:
        shape = (tokens, self.topk)
        drawn = torch.randn(shape, generator=generator)
        match self.weights:
            case "softmax":
                return drawn.softmax(dim=1)
            case "signed":
                return drawn
            case "zeros":
                return torch.zeros(shape)
            case "large":
                return drawn * 1e30
            case "special":
                values = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-38, 1e-42, 3e38, torch.inf, -torch.inf, torch.nan])
                values = torch.cat([values, _FULL_NANS])
                return values[torch.randint(0, len(values), shape, generator=generator)]
