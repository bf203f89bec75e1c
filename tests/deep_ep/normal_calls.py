"""What ranks see of normal calls, and what they have to see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.deep_ep import Buffer
from sglang_ascend_moe.deep_ep.buffer_config import normal_parameters
from sglang_ascend_moe.deep_ep.fp8 import quantise
from sglang_ascend_moe.windows.layout import plan_window
from tests.exchange.pool import Rank
from tests.exchange.reference import RankInput
from tests.exchange.scenario import Scenario

from .deliberate_mistakes import mutated
from .low_latency_calls import cast_back

SCENARIO = Scenario(tokens=(6, 0, 11, 3), experts_per_rank=3, hidden=512, topk=3, routing="sparse")
MANY_TOKENS = 64
ALIGNMENT = 4
SPARE_TOKENS = 5


class Case(NamedTuple):
    scenario: Scenario = SCENARIO
    fp8: bool = False
    round_tokens: int = MANY_TOKENS
    """Tokens of every rank in a round."""


class Observed(NamedTuple):
    """Of one rank. `worst` and `again` are a dispatch with num_worst_tokens, and one by the handle of the first."""

    rows: Tensor
    scales: Tensor | None
    ids: Tensor
    weights: Tensor
    tokens_per_expert: list[int]
    aligned: list[int]
    prefix: Tensor
    source_tokens: Tensor
    heads: Tensor
    worst_rows: Tensor
    worst_ids: Tensor
    worst_weights: Tensor
    worst_tokens_per_expert: list[int]
    again: Tensor
    combined: Tensor
    combined_weights: Tensor
    biased: Tensor


def open_buffer(rank: Rank, case: Case) -> Buffer:
    size = plan_window(normal_parameters(rank.size, case.scenario.hidden, case.round_tokens)).total_bytes
    return Buffer(rank.group, size, explicitly_destroy=True)


def results_of(rows: Tensor, rank: int) -> Tensor:
    """What the experts of a rank make of its rows: depends on rank and place."""
    place = torch.arange(len(rows)).unsqueeze(1)
    return (rows.float() * (0.75 + rank) + place * 0.125).to(torch.bfloat16)


def biases(tokens: int, hidden: int) -> tuple[Tensor, Tensor]:
    line = torch.arange(hidden) / 64
    return tuple((line + token).expand(tokens, hidden).to(torch.bfloat16) for token in (1, 2))


def observe(rank: Rank, case: Case, mutation: str | None = None) -> Observed:
    with mutated(mutation):
        x, ids, weights = case.scenario.inputs(rank.size)[rank.rank]
        buffer = open_buffer(rank, case)
        given = quantise(x) if case.fp8 else x
        per_rank, _, per_expert, in_rank, _ = buffer.get_dispatch_layout(ids, case.scenario.num_experts(rank.size))
        arguments = {
            "num_tokens_per_rank": per_rank, "is_token_in_rank": in_rank, "num_tokens_per_expert": per_expert,
            "topk_idx": ids, "topk_weights": weights,
        }  # fmt: skip
        received, got_ids, got_weights, listed, handle, event = buffer.dispatch(given, **arguments, async_finish=True)
        event.current_stream_wait()
        *_, aligned, _, _ = buffer.dispatch(given, **arguments, expert_alignment=ALIGNMENT)
        arriving = len(got_ids)
        worst = buffer.dispatch(given, **arguments, num_worst_tokens=arriving + SPARE_TOKENS)
        again, *nothing = buffer.dispatch(given, handle=handle)
        assert nothing[:4] == [None] * 4
        rows, scales = received if case.fp8 else (received, None)
        plain = cast_back(rows, scales) if case.fp8 else rows
        # The handle of the first, although others were dispatched since; a sum with weights and one with a bias.
        combined, combined_weights, _ = buffer.combine(results_of(plain, rank.rank), handle, topk_weights=got_weights)
        terms = biases(len(x), case.scenario.hidden)
        biased, no_weights, _ = buffer.combine(results_of(plain, rank.rank), handle, bias=terms)
        assert no_weights is None
        buffer.destroy()
        plain_again, plain_worst = (cast_back(*each) if case.fp8 else each for each in (again, worst[0]))
    return Observed(
        plain, scales, got_ids, got_weights, listed, aligned, handle[0], handle[3], handle[5], plain_worst, worst[1],
        worst[2], worst[3], plain_again, combined, combined_weights, biased,
    )  # fmt: skip


class Expected:
    """What every rank has to see."""

    def __init__(self, case: Case, ranks: int) -> None:
        self.inputs = case.scenario.inputs(ranks)
        self.local = case.scenario.experts_per_rank
        # [rank]: (source, token) of the rows that arrive there.
        self.origins = [
            [
                (source, token)
                for source, (_, ids, _) in enumerate(self.inputs)
                for token in range(len(ids))
                if any(0 <= expert - rank * self.local < self.local for expert in ids[token].tolist())
            ]
            for rank in range(ranks)
        ]
        plain = [cast_back(*quantise(given.x)) if case.fp8 else given.x for given in self.inputs]
        empty = plain[0].new_empty((0, case.scenario.hidden))
        self.rows = [
            torch.stack([plain[source][token] for source, token in origins]) if origins else empty
            for origins in self.origins
        ]

    def ids(self, rank: int) -> list[list[int]]:
        first = rank * self.local
        return [
            [expert - first if 0 <= expert - first < self.local else -1 for expert in ids]
            for ids in (self.inputs[source].topk_ids[token].tolist() for source, token in self.origins[rank])
        ]

    def weights(self, rank: int) -> list[list[float]]:
        return [
            [weight if expert >= 0 else 0.0 for weight, expert in zip(weights, ids, strict=True)]
            for weights, ids in zip(
                (self.inputs[source].topk_weights[token].tolist() for source, token in self.origins[rank]),
                self.ids(rank),
                strict=True,
            )
        ]

    def tokens_per_expert(self, rank: int) -> list[int]:
        ids = [expert for row in self.ids(rank) for expert in row]
        return [ids.count(expert) for expert in range(self.local)]

    def combined(self, rank: int) -> Tensor:
        """Sums in float32 in the order of ranks, rounded once."""
        x = self.inputs[rank].x
        total = torch.zeros(x.shape)
        for holder, origins in enumerate(self.origins):
            results = results_of(self.rows[holder], holder)
            for (source, token), result in zip(origins, results, strict=True):
                if source == rank:
                    total[token] += result.float()
        return total.to(torch.bfloat16)

    def combined_weights(self, rank: int) -> Tensor:
        given: RankInput = self.inputs[rank]
        return given.topk_weights.masked_fill(given.topk_ids < 0, 0)
