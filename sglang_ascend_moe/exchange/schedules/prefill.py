"""The prefill schedule: as many rounds as the windows need, planned by every rank from the same facts.

A round is a whole exchange over a range of each rank's tokens. Ranks first tell each other, through the mailboxes, how
many rows each chunk of their tokens sends to each rank (`PrefillPlan`); from these blocks each derives the same rounds.
Rounds are cut by source tokens, so that a token's sum is made in one round and its bits do not depend on their number.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import PrefillPlan
from sglang_ascend_moe.exchange.control.mailbox import gather_blocks
from sglang_ascend_moe.exchange.schedules.inputs import RoutedTokens
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.native.codes import Kind, Part, Step


class Round(NamedTuple):
    """Tokens [begins[r], ends[r]) of each rank r."""

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    rows: tuple[int, ...] | None
    """What each rank gets; None: not known, but no more than fits."""


def chunk_tokens(tokens: int, chunks: int) -> int:
    """Tokens per chunk, so that there are at most so many."""
    return max(1, -(-tokens // chunks))


def plan_rounds(plans: list[PrefillPlan], capacity: int, rows_per_token: int, max_tokens: int) -> list[Round]:
    """Divides every rank's tokens into rounds of which none sends a rank more than `capacity` rows.

    Takes chunk i of every rank together, and as many i as fit into one round. Where not even one i fits, its chunks are
    cut into pieces that fit whatever the routing (ranks * piece * rows_per_token <= capacity; at least one token:
    capacity >= ranks * rows_per_token is the least that a window has). There is always at least one round.

    Raises `ProtocolMismatch` for a plan whose chunks do not cover its tokens, or with more than `max_tokens`.
    """
    ranks = len(plans)
    for plan in plans:
        if plan.tokens > max_tokens:
            raise ProtocolMismatch(
                f"the plan of rank {plan.rank} brings {plan.tokens} tokens, and ranks agreed on at most {max_tokens}"
            )
        chunks = -(-plan.tokens // plan.chunk_tokens)
        if len(plan.rows) != chunks or any(len(rows) != ranks for rows in plan.rows):
            raise ProtocolMismatch(
                f"the plan of rank {plan.rank} has {len(plan.rows)} chunks for {plan.tokens} tokens of "
                f"{plan.chunk_tokens} each and {ranks} ranks"
            )
    piece = capacity // (ranks * rows_per_token)
    rounds: list[Round] = []
    begins = ends = (0,) * ranks
    load = [0] * ranks
    for chunk in range(max(len(plan.rows) for plan in plans)):
        chunk_load = [
            sum(plan.rows[chunk][destination] for plan in plans if chunk < len(plan.rows))
            for destination in range(ranks)
        ]
        chunk_ends = tuple(min(plan.tokens, (chunk + 1) * plan.chunk_tokens) for plan in plans)
        joint = [one + another for one, another in zip(load, chunk_load, strict=True)]
        if max(joint) <= capacity:
            load, ends = joint, chunk_ends
            continue
        if ends != begins:
            rounds.append(Round(begins, ends, tuple(load)))
            begins = ends
        if max(chunk_load) <= capacity:
            load, ends = chunk_load, chunk_ends
            continue
        while begins != chunk_ends:
            ends = tuple(min(begin + piece, end) for begin, end in zip(begins, chunk_ends, strict=True))
            rounds.append(Round(begins, ends, None))
            begins = ends
        load = [0] * ranks
    if ends != begins or not rounds:
        rounds.append(Round(begins, ends, tuple(load)))
    return rounds


def run_prefill(
    steps: ExchangeSteps,
    identity: tuple[bytes, int],
    tokens: RoutedTokens,
    experts: Callable[[ExpertRows], None],
    out: torch.Tensor,
    *,
    overlap: bool,
    wait: bool = True,
) -> None:
    """The whole layer in as many rounds as needed; the result goes into `out` [tokens, hidden].

    If it is not to wait, it waits for the plan alone.

    `identity` is the session's id and this rank. `experts` is called once per round. With `overlap` (the same on every
    rank), more than one round goes through the halves of the window: the rows of a round are placed while the experts
    run on those of the round before.
    """
    begun_ns = time.perf_counter_ns()
    session_id, rank = identity
    count = tokens.x.shape[0]
    chunk = chunk_tokens(count, steps.layout.parameters.plan_chunks)
    counted = steps.session.count_chunks(tokens.ids, chunk)
    block = PrefillPlan(session=session_id, rank=rank, tokens=count, chunk_tokens=chunk, rows=counted.rows)
    plans = gather_blocks(steps.session, block, tokens=count, error=counted.error, detail=counted.detail)

    capacity, parameters = steps.layout.capacity, steps.layout.parameters
    rows_per_token, most = parameters.rows_per_token, parameters.max_tokens
    rounds = plan_rounds(plans, capacity, rows_per_token, most)
    overlap = overlap and len(rounds) > 1 and capacity // 2 >= len(plans) * rows_per_token
    if overlap:
        rounds = plan_rounds(plans, capacity // 2, rows_per_token, most)
    steps.observation.counters.planned(begun_ns, len(rounds))
    if overlap:
        _run_overlapped(steps, rank, tokens, rounds, experts, out)
    else:
        _run_in_turn(steps, rank, tokens, rounds, experts, out, wait=wait)


def _run_in_turn(
    steps: ExchangeSteps,
    rank: int,
    tokens: RoutedTokens,
    rounds: list[Round],
    experts: Callable[[ExpertRows], None],
    out: torch.Tensor,
    *,
    wait: bool,
) -> None:
    for number, one_round in enumerate(rounds):
        begin, end = one_round.begins[rank], one_round.ends[rank]
        taken, continues = tokens.between(begin, end), number > 0
        if wait:
            rows = steps.dispatch(taken, Kind.PREFILL, keep_weights=False, continues=continues)
        else:
            planned = None if one_round.rows is None else one_round.rows[rank]
            rows = steps.dispatch_deferred(taken, Kind.PREFILL, planned_rows=planned, continues=continues)
        experts(rows)
        steps.combine(rows.out, rows, out[begin:end], wait=wait)


def _run_overlapped(
    steps: ExchangeSteps,
    rank: int,
    tokens: RoutedTokens,
    rounds: list[Round],
    experts: Callable[[ExpertRows], None],
    out: torch.Tensor,
) -> None:
    """Dispatches round n + 1 on a thread while the experts run on round n. The session has one user at a time: the
    thread during the experts, this one before and after. An interrupt here ends the thread's wait as well.
    """

    def dispatch(number: int) -> ExpertRows:
        begin, end = rounds[number].begins[rank], rounds[number].ends[rank]
        part = Part.SECOND_HALF if number % 2 else Part.FIRST_HALF
        return steps.dispatch(tokens.between(begin, end), Kind.PREFILL, part, keep_weights=False, continues=number > 0)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="ascend-moe-dispatch") as background:
        rows = dispatch(0)
        for number, one_round in enumerate(rounds):
            try:
                following = background.submit(dispatch, number + 1) if number + 1 < len(rounds) else None
                experts(rows)
                next_rows = following.result() if following is not None else None
            except (KeyboardInterrupt, SystemExit) as interrupt:
                steps.session.give_up(interrupt, Step.EXPERTS, rows.ticket.epoch)
                raise
            steps.combine(rows.out, rows, out[one_round.begins[rank] : one_round.ends[rank]])
            if next_rows is not None:
                rows = next_rows
