"""Handles of normal mode: what a combine or another dispatch has to know of the first."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor


class Routes:
    """Who sends how many tokens to whom, and which of this rank's tokens go where.

    in_rank: bool [tokens, ranks]; tokens_per_rank: int [sources, destinations]; tokens: of every rank.
    """

    def __init__(self, in_rank: Tensor, tokens_per_rank: Tensor, tokens: list[int], rank: int) -> None:
        self.in_rank = in_rank
        self.tokens_per_rank = tokens_per_rank
        self.tokens = tokens
        self.sent: list[int] = tokens_per_rank[rank].tolist()
        self.received: list[int] = tokens_per_rank[:, rank].tolist()
        self.arriving = sum(self.received)

    @property
    def places(self) -> list[int]:
        """Where the rows of each source begin among those that arrive."""
        return [sum(self.received[:source]) for source in range(len(self.received))]

    @cached_property
    def ids(self) -> Tensor:
        """int64 [tokens, ranks]: the ranks that a token goes to, each at its own number; -1 for the others."""
        ranks = torch.arange(self.in_rank.shape[1]).expand(self.in_rank.shape)
        return torch.where(self.in_rank, ranks, -1)

    @cached_property
    def ones(self) -> Tensor:
        """float32 [tokens, ranks]: a combine of normal mode is a plain sum."""
        return torch.ones(self.in_rank.shape)

    @cached_property
    def sent_tokens(self) -> Tensor:
        """int64 [sum(sent)]: the tokens that are sent, by destination rank and token."""
        return self.in_rank.t().nonzero()[:, 1]


class NormalHandle(tuple[Any, ...]):
    """What DeepEP's clients unpack, all int32 but the last but one: rank_prefix_matrix [sources, destinations], counts
    of tokens of this source and those before; two channel matrices [ranks, 1], for there is one channel, of tokens sent
    and received; the source token of every row that arrived; is_token_in_rank bool [tokens, ranks]; and send_head
    [tokens, ranks], the number of a token among those sent to a rank, -1 if it is not."""

    routes: Routes

    @classmethod
    def of(cls, routes: Routes) -> NormalHandle:
        """The source tokens are to be filled in by whoever receives them."""
        prefix = routes.tokens_per_rank.cumsum(0).to(torch.int32)
        sent, received = (
            torch.tensor(counts, dtype=torch.int32).unsqueeze(1) for counts in (routes.sent, routes.received)
        )
        heads = (routes.in_rank.cumsum(0) - 1).masked_fill(~routes.in_rank, -1).to(torch.int32)
        source_tokens = torch.empty(routes.arriving, dtype=torch.int32)
        handle = cls((prefix, sent, received, source_tokens, routes.in_rank, heads))
        handle.routes = routes
        return handle

    @property
    def source_tokens(self) -> Tensor:
        tokens: Tensor = self[3]
        return tokens
