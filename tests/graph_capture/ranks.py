"""What the ranks of a pool run: a small decode step with an exchange in each layer, eagerly or from a tape.

Everything between the exchanges is elementwise, so that a row has the same bits whatever it is padded with.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe import CaptureRefused, Exchange, ExpertRows, launches
from sglang_ascend_moe.graph_capture.agreement import check_together
from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.tape import Tape, record
from tests.exchange.pool import Rank

EXPERTS, HIDDEN, TOPK, LAYERS = 8, 32, 3, 2
BUCKETS = (8, 4, 2)


class Turn(NamedTuple):
    """What one rank does in one step: `tokens` rows, from the tape of `bucket`, or eagerly and unpadded without one.
    A step of `prefill` is eager on every rank."""

    tokens: int
    bucket: int | None = None
    prefill: bool = False


class Steps:
    """An exchange, and the tapes of one rank."""

    def __init__(self, rank: Rank) -> None:
        self.rank = rank.rank
        self.exchange = Exchange.create(
            rank.group, num_experts=EXPERTS, hidden=HIDDEN, max_tokens=BUCKETS[0], topk=TOPK, distinct_topk=True
        )
        self.x = torch.zeros(BUCKETS[0], HIDDEN, dtype=torch.bfloat16)
        self.count = torch.zeros(1, dtype=torch.int64)
        self.tapes: dict[int, Tape] = {}

    def capture(self, group: Any) -> None:
        arena = Arena()
        for bucket in BUCKETS:
            rows = self.x[:bucket]
            check_together(lambda rows=rows: self.step(rows), group, subject=f"a batch of {bucket}")
            self.tapes[bucket] = record(lambda rows=rows: self.step(rows), arena)

    def step(self, x: Tensor, phase: str = "decode") -> Tensor:
        real = (torch.arange(x.shape[0]) < self.count)[:, None]
        for layer in range(LAYERS):
            scores = torch.softmax(x[:, :EXPERTS].float() * (layer + 1), dim=-1)
            weights, ids = torch.topk(scores, TOPK)
            x = (x + self._exchanged(x, torch.where(real, ids, -1), weights, phase)) * 0.5
        return x

    def _exchanged(self, x: Tensor, ids: Tensor, weights: Tensor, phase: str) -> Tensor:
        if not launches.capturing():
            return self.exchange.run(x, ids, weights, self._experts, phase=phase)
        out = torch.empty_like(x)
        launches.launch(
            lambda x, ids, weights, out: self.exchange.prepare(x, ids, weights, self._experts, out),
            [x, ids, weights],
            [out],
        )
        return out

    def _experts(self, rows: ExpertRows) -> None:
        begin = 0
        for expert, count in enumerate(rows.counts.tolist()):
            end = begin + count
            factor = 0.25 * (self.rank * len(rows.counts) + expert) - 1.0
            torch.tanh(rows.rows[begin:end] * factor, out=rows.out[begin:end])
            begin = end

    def take(self, turn: Turn, seed: int) -> Tensor:
        """One step on input that `seed` and this rank decide; rows past `turn.tokens` hold what must not be used."""
        draw = torch.Generator().manual_seed(seed * 16 + self.rank)
        rows = torch.randn(turn.tokens, HIDDEN, generator=draw).bfloat16()
        self.count.fill_(turn.tokens)
        if turn.bucket is None:
            return self.step(rows, "prefill" if turn.prefill else "decode")
        self.x.fill_(float("nan"))
        self.x[: turn.tokens] = rows
        return self.tapes[turn.bucket].replay()[: turn.tokens].clone()


def compare_turns(rank: Rank, schedule: list[list[Turn]]) -> list[int]:
    """Takes every step of `schedule` [step][rank] as it says, then once more eagerly on all ranks; the numbers of the
    steps whose results differ."""
    with torch.inference_mode():
        steps = Steps(rank)
        with steps.exchange:
            steps.capture(rank.group)
            found = [steps.take(turns[rank.rank], seed) for seed, turns in enumerate(schedule)]
            eager = [steps.take(turns[rank.rank]._replace(bucket=None), seed) for seed, turns in enumerate(schedule)]
    return [seed for seed, (one, other) in enumerate(zip(found, eager, strict=True)) if not torch.equal(one, other)]


def replay_often(rank: Rank, replays: int, compared: int) -> int:
    """Replays, each on the result of the one before; every `compared`th is done eagerly as well. How many differ."""
    differ = 0
    with torch.inference_mode():
        steps = Steps(rank)
        with steps.exchange:
            steps.capture(rank.group)
            steps.count.fill_(3)
            steps.x.copy_(torch.randn(steps.x.shape, generator=torch.Generator().manual_seed(rank.rank)))
            for number in range(replays):
                wanted = steps.step(steps.x[:4]) if number % compared == 0 else None
                result = steps.tapes[4].replay()
                differ += wanted is not None and not torch.equal(wanted[:3], result[:3])
                steps.x[:4].copy_(result).mul_(1.25).clamp_(-3, 3)
    return differ


def broken_rules(rank: Rank) -> dict[str, str]:
    """What is said of steps that break a rule for exchanges in graphs."""
    said = {}
    with torch.inference_mode():
        steps = Steps(rank)
        with steps.exchange as exchange:
            x, out = steps.x[:4], torch.empty(4, HIDDEN, dtype=torch.bfloat16)
            ids, weights = torch.zeros(4, TOPK, dtype=torch.int64), torch.ones(4, TOPK)
            wide = torch.zeros(HIDDEN, 4, dtype=torch.bfloat16).t()
            for name, arguments in {
                "x in columns": (wide, ids, weights, out),
                "out in columns": (x, ids, weights, wide),
                "ids in columns": (x, ids.t().contiguous().t(), weights, out),
                "weights to convert": (x, ids, weights.double(), out),
            }.items():
                x_, ids_, weights_, out_ = arguments
                said[name] = _refusal(
                    lambda x=x_, i=ids_, w=weights_, o=out_: exchange.prepare(x, i, w, steps._experts, o)
                )
            for name, step in {
                "run": lambda: exchange.run(x, ids, weights, steps._experts),
                "dispatch": lambda: exchange.dispatch(x, ids, weights),
                "counts to the host": lambda: int(exchange.counts_matrix.sum()),
            }.items():
                said[name] = _refusal(lambda step=step: record(step, Arena()))
    return said


def _refusal(action: Any) -> str:
    try:
        action()
    except CaptureRefused as refused:
        return str(refused)
    return "not refused"
