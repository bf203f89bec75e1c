"""DeepEP's normal mode: one row of a token to every rank that holds one of its experts, in as many rounds as needed.

The ranks are what the exchange below calls experts. Rows go through the window; ids, weights and scales, a few per cent
of the bytes, go over torch.distributed. What a dispatch returns belongs to the caller, as in DeepEP, and is therefore
copied out of the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.deep_ep.buffer_config import normal_parameters_within
from sglang_ascend_moe.deep_ep.buffer_windows import Windows
from sglang_ascend_moe.deep_ep.group import RankGroup
from sglang_ascend_moe.deep_ep.handles import NormalHandle, Routes
from sglang_ascend_moe.deep_ep.normal_inputs import DispatchInput, agree
from sglang_ascend_moe.deep_ep.rank_routing import localise
from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.exchange.schedules.inputs import RoutedTokens
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps

_LEAST_ROW_BYTES = 16
"""Of a dispatch that only finds out where rows go."""


class Received(NamedTuple):
    """What a dispatch brought; `scales`, `ids` and `weights` None where none were sent."""

    rows: Tensor
    scales: Tensor | None
    ids: Tensor | None
    weights: Tensor | None
    tokens_per_expert: list[int]
    handle: NormalHandle


class Normal:
    """Normal calls of one Buffer. Every rank makes the same ones in the same order."""

    def __init__(self, group: RankGroup, room_bytes: int) -> None:
        self._group = group
        self._room_bytes = room_bytes
        self._windows = Windows(group.group)

    def close(self) -> None:
        self._windows.close()

    def dispatch(self, given: DispatchInput, *, expert_alignment: int, worst_tokens: int) -> Received:
        """See `Buffer.dispatch`, without a handle."""
        agreed = agree(self._group, given, worst_tokens)
        routes = Routes(given.in_rank.clone(), agreed.tokens_per_rank, agreed.tokens, self._group.rank)
        handle = NormalHandle.of(routes)
        arrived = routes.arriving
        room = max(arrived, worst_tokens)
        rows = self._move_rows(given.x, routes, room)
        words = self._group.exchange(_beside(given, routes), routes.sent, routes.received)
        handle.source_tokens.copy_(words[:, 0])
        topk = 0 if given.topk_idx is None else given.topk_idx.shape[1]
        ids = weights = scales = None
        if given.topk_idx is not None:
            local = agreed.num_experts // self._group.size
            raw = words[:, 1 : 1 + topk], words[:, 1 + topk : 1 + 2 * topk].contiguous().view(torch.float32)
            ids = torch.full((room, topk), -1, dtype=given.topk_idx.dtype)
            weights = torch.zeros(room, topk)
            ids[:arrived], weights[:arrived] = localise(*raw, self._group.rank * local, local)
        if given.scales is not None:
            scales = torch.zeros(room, given.scales.shape[1], dtype=given.scales.dtype)
            scales[:arrived] = words[:, 1 + 2 * topk :].contiguous().view(given.scales.dtype)
        listed = [] if worst_tokens else [-(-n // expert_alignment) * expert_alignment for n in agreed.local_counts]
        return Received(rows, scales, ids, weights, listed, handle)

    def dispatch_again(self, x: Tensor, scales: Tensor | None, handle: NormalHandle) -> tuple[Tensor, Tensor | None]:
        """Rows, and scales if there are any, by the routes of an earlier dispatch."""
        routes = handle.routes
        if len(x) != len(routes.in_rank):
            raise InvalidInput(f"x has {len(x)} tokens, handle was made for {len(routes.in_rank)}")
        rows = self._move_rows(x, routes, routes.arriving)
        if scales is None:
            return rows, None
        words = self._group.exchange(_words(scales, routes), routes.sent, routes.received)
        return rows, words.view(scales.dtype)

    def combine(
        self, x: Tensor, handle: NormalHandle, topk_weights: Tensor | None, bias: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """See `Buffer.combine`."""
        routes = handle.routes
        tokens, hidden = len(routes.in_rank), x.shape[1]
        for term in bias:
            if term.shape != (tokens, hidden) or term.dtype is not torch.bfloat16:
                raise InvalidInput(
                    f"bias is {tuple(term.shape)} of {term.dtype}; it must be {(tokens, hidden)} of torch.bfloat16"
                )
        if len(x) < routes.arriving:
            raise InvalidInput(f"x has {len(x)} rows, the dispatch of this handle received {routes.arriving}")
        steps = self._open(hidden)
        combined = torch.empty(tokens, hidden, dtype=torch.bfloat16)
        nothing = torch.zeros(1, _LEAST_ROW_BYTES, dtype=torch.uint8).expand(tokens, -1)
        places = routes.places
        for chosen in _rounds(routes, steps):
            rows, counts = self._send(steps, nothing, routes, chosen, _LEAST_ROW_BYTES)
            for in_all, in_window in _pieces(places, counts):
                rows.out[in_window] = x[in_all]
            steps.combine(rows.out, rows, combined[chosen])
        if bias:
            combined = sum((term.float() for term in bias), combined.float()).to(torch.bfloat16)
        return combined, None if topk_weights is None else self._combine_weights(topk_weights, routes)

    def _combine_weights(self, topk_weights: Tensor, routes: Routes) -> Tensor:
        """float32 [tokens, topk]: sums over the ranks that a token was sent to, in their order."""
        if topk_weights.dim() != 2 or len(topk_weights) < routes.arriving or not topk_weights.is_floating_point():
            raise InvalidInput(
                f"topk_weights is {tuple(topk_weights.shape)} of {topk_weights.dtype}; it must be "
                f"[{routes.arriving}, topk] of torch.float32"
            )
        arrived = topk_weights[: routes.arriving].float()
        returned = self._group.exchange(arrived, routes.received, routes.sent)
        sums = torch.zeros(len(routes.in_rank), topk_weights.shape[1])
        # A token is sent to a rank once: no two addends of one index_add_ meet, which makes its order that of ranks.
        parts = zip(routes.sent_tokens.split(routes.sent), returned.split(routes.sent), strict=True)
        for tokens, weights in parts:
            sums.index_add_(0, tokens, weights)
        return sums

    def _open(self, hidden: int) -> ExchangeSteps:
        return self._windows.open(normal_parameters_within(self._group.size, hidden, self._room_bytes))

    def _move_rows(self, x: Tensor, routes: Routes, room: int) -> Tensor:
        """[room, hidden]: the rows that arrive, by source rank and token; those past them are undefined."""
        steps = self._open(x.shape[1])
        rows_to_send = x if x.stride(1) == 1 else x.contiguous()
        row_bytes = x.shape[1] * x.element_size()
        whole = row_bytes == steps.layout.parameters.row_bytes
        received = torch.empty(room, x.shape[1], dtype=x.dtype)
        places = routes.places
        for chosen in _rounds(routes, steps):
            rows, counts = self._send(steps, rows_to_send, routes, chosen, 0 if whole else row_bytes)
            window = rows.rows if whole else rows.rows.view(torch.uint8)[:, :row_bytes].view(x.dtype)
            for in_all, in_window in _pieces(places, counts):
                received[in_all] = window[in_window]
        return received

    def _send(
        self, steps: ExchangeSteps, x: Tensor, routes: Routes, chosen: slice, row_bytes: int
    ) -> tuple[ExpertRows, list[int]]:
        """What arrives with the chosen tokens, and how many rows of it are of each source."""
        tokens = RoutedTokens(x[chosen], routes.ids[chosen], routes.ones[chosen])
        rows = steps.dispatch_send(tokens, row_bytes=row_bytes)
        steps.dispatch_receive(rows)
        return rows, steps.session.received[:, 0].tolist()


def _rounds(routes: Routes, steps: ExchangeSteps) -> list[slice]:
    """As many tokens of every rank as the window holds, at a time; at least one round, equally many on every rank."""
    most, tokens = steps.layout.parameters.max_tokens, len(routes.in_rank)
    return [slice(min(begin, tokens), min(begin + most, tokens)) for begin in range(0, max(1, *routes.tokens), most)]


def _pieces(places: list[int], counts: list[int]) -> Iterator[tuple[slice, slice]]:
    """Of each source, where its rows of a round lie among all that arrive, and where in the window. `places` are where
    the next ones of each source go, and advance."""
    offset = 0
    for source, count in enumerate(counts):
        yield slice(places[source], places[source] + count), slice(offset, offset + count)
        places[source] += count
        offset += count


def _beside(given: DispatchInput, routes: Routes) -> Tensor:
    """int32 [sum(sent), n]: what belongs to each row that is sent; its token, ids, weights and scales."""
    words = [routes.sent_tokens.unsqueeze(1).to(torch.int32)]
    if given.topk_idx is not None and given.topk_weights is not None:
        words += [_words(given.topk_idx.to(torch.int32), routes), _words(given.topk_weights.float(), routes)]
    if given.scales is not None:
        words.append(_words(given.scales, routes))
    return torch.cat(words, dim=1)


def _words(values: Tensor, routes: Routes) -> Tensor:
    """Four-byte values [tokens, n] of every row that is sent, as int32 words."""
    return values.contiguous().view(torch.int32)[routes.sent_tokens]
