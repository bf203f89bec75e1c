"""A rank that dies, stalls, fails or leaves is named by every other rank; afterwards a new exchange works."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from sglang_ascend_moe.errors import PeerFault, PeerLost, ProtocolMismatch, SessionPoisoned
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.native.codes import Step

from .harmed_ranks import (
    CALLS,
    SCENARIO,
    Seen,
    call,
    harm_at,
    require_new_exchange_works,
    require_poisoned,
    see_fault,
    small_window,
)
from .pool import Ended, Rank
from .reference import scale_by_expert
from .surface import compute, open_exchange

CULPRIT = 1
STEPS = [Step.ANNOUNCE, Step.COUNTS, Step.PLACE, Step.ARRIVALS, Step.EXPERTS, Step.DONE, Step.REDUCE]


def survivors(ranks: int) -> list[int]:
    return [rank for rank in range(ranks) if rank != CULPRIT]


def lose_a_rank(rank: Rank, how: str, step: Step) -> Seen | None:
    rounds = {"run-prefill": small_window(rank), "run-overlapped": small_window(rank) | {"workers": 2}}
    exchange = open_exchange("windows", rank, SCENARIO, **rounds.get(how, {}))
    how = how.replace("overlapped", "prefill")
    call(exchange, how, rank)
    if rank.rank == CULPRIT:
        exchange.watch_steps(harm_at(step, signal.SIGKILL))
        rank.note(str(time.monotonic()))
        call(exchange, how, rank)
        raise AssertionError(f"step {step.name} never began")
    # Who dies in the last step has done its part of that call: the next one finds out.
    seen = see_fault(exchange, rank, how, calls=2)
    require_poisoned(exchange, rank)
    require_new_exchange_works(rank, "windows", "after the loss", survivors(rank.size))
    return seen


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name.lower())
@pytest.mark.parametrize("how", ["prefill", "run-overlapped"])
def test_a_killed_rank_is_named_in_overlapping_rounds_and_lone_prefills(fresh_pool, record_property, how, step):
    ranks = 3
    pool = fresh_pool(ranks)
    pool.start(lose_a_rank, how, step)
    died_after = float(pool.next_note(CULPRIT))
    results = pool.collect(dead={CULPRIT})
    assert results[CULPRIT] == Ended(-signal.SIGKILL)
    for rank in survivors(ranks):
        seen = results[rank]
        # The timeout is 30 s: a PeerLost means that the death was noticed, not waited out.
        assert (seen.code, seen.rank) == (PeerLost.code, CULPRIT), seen
        assert f"rank {CULPRIT}" in seen.message
        record_property(f"rank{rank}_noticed_after_s", round(seen.at - died_after, 4))


def fail_in_experts(rank: Rank, implementation: str, how: str, failing_call: int) -> None:
    calls = 0

    def experts(rows) -> None:
        nonlocal calls
        calls += 1
        if rank.rank == CULPRIT and calls == failing_call:
            raise ArithmeticError("no such expert")
        compute(rows, scale_by_expert, rank)

    options = small_window(rank) if failing_call > 1 else {}
    exchange = open_exchange(implementation, rank, SCENARIO, **options)
    mine = SCENARIO.inputs(rank.size)[rank.rank]
    expected = ArithmeticError if rank.rank == CULPRIT else PeerLost
    with pytest.raises(expected, match="no such expert" if rank.rank == CULPRIT else f"rank {CULPRIT}"):
        exchange.run(*mine, experts, phase=how)
    require_poisoned(exchange, rank)
    require_new_exchange_works(rank, implementation, "after the failure", list(range(rank.size)))


@pytest.mark.parametrize(
    ("implementation", "how", "failing_call"),
    [
        ("windows", "decode", 1),
        ("windows", "prefill", 1),
        ("windows", "prefill", 2),
        ("collective", "decode", 1),
        ("collective", "prefill", 1),
    ],
    ids=["windows-decode", "windows-prefill", "windows-second-round", "collective-decode", "collective-prefill"],
)
def test_a_rank_whose_experts_raise_is_named_by_the_others(fresh_pool, implementation, how, failing_call):
    fresh_pool(3).run(fail_in_experts, implementation, how, failing_call)


def leave_by_an_exception(rank: Rank) -> None:
    with open_exchange("windows", rank, SCENARIO) as exchange:
        exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
        raise ArithmeticError("no such expert")


def fail_between_dispatch_and_combine(rank: Rank) -> None:
    if rank.rank == CULPRIT:
        with pytest.raises(ArithmeticError):
            leave_by_an_exception(rank)
        return
    exchange = open_exchange("windows", rank, SCENARIO)
    # It may already be gone while this rank still waits for the third one's rows.
    with pytest.raises(PeerLost, match=f"rank {CULPRIT}"):
        call(exchange, "decode", rank)
    require_poisoned(exchange, rank)


def test_a_rank_that_leaves_the_context_by_an_exception_is_named(pools):
    pools.run(3, fail_between_dispatch_and_combine)


def fail_after_its_part(rank: Rank) -> Seen | None:
    """The culprit does its part of a call and then fails, all between two looks of the other, which waits for it."""
    exchange = open_exchange("windows", rank, SCENARIO)
    if rank.rank != CULPRIT:
        signal.signal(signal.SIGUSR2, lambda *_: (rank.note("looks away"), rank.wait_for_parent()))
        call(exchange, "decode", rank)
        return see_fault(exchange, rank, "decode", calls=1)
    done = exchange._steps._windows[CULPRIT].view(exchange.layout.offsets.done, (1,), torch.int64)

    def stay_until_the_other_looks_away(step: Step) -> None:
        if step == Step.DONE:
            while done.item() == 0:
                os.sched_yield()
            rank.note("waited for")
            rank.wait_for_parent()

    exchange.watch_steps(stay_until_the_other_looks_away)
    call(exchange, "decode", rank)
    with pytest.raises(ArithmeticError), exchange:
        raise ArithmeticError("after its part")
    rank.note("failed")
    return None


def test_what_a_rank_did_before_it_failed_still_counts(fresh_pool):
    pool = fresh_pool(2)
    pool.start(fail_after_its_part)
    pool.await_notes("waited for", [CULPRIT])
    pool.signal(0, signal.SIGUSR2)
    pool.await_notes("looks away", [0])
    pool.release(CULPRIT)
    pool.await_notes("failed", [CULPRIT])
    pool.release(0)
    seen = pool.collect()[0]
    assert (seen.code, seen.rank) == (PeerLost.code, CULPRIT), seen


def close_early(rank: Rank, how: str) -> None:
    exchange = open_exchange("windows", rank, SCENARIO)
    call(exchange, how, rank)
    if rank.rank == CULPRIT:
        exchange.close()
        return
    with pytest.raises(PeerLost, match=f"rank {CULPRIT}.*closed"):
        call(exchange, how, rank)
    require_poisoned(exchange, rank)


@pytest.mark.parametrize("how", CALLS)
def test_a_rank_that_closes_while_others_go_on_is_named(pools, how):
    pools.run(3, close_early, how)


def close_after_the_same_calls(rank: Rank, how: str) -> None:
    for _ in range(20):
        with open_exchange("windows", rank, SCENARIO) as exchange:
            call(exchange, how, rank)


@pytest.mark.parametrize("how", CALLS)
def test_closing_after_the_same_calls_harms_nobody(pools, ranks, how):
    pools.run(ranks, close_after_the_same_calls, how)


def interrupt_the_hook(rank: Rank) -> None:
    exchange = open_exchange("windows", rank, SCENARIO)
    if rank.rank == CULPRIT:
        exchange.watch_steps(raise_at_place)
    expected = ArithmeticError if rank.rank == CULPRIT else PeerLost
    with pytest.raises(expected):
        call(exchange, "decode", rank)
    require_poisoned(exchange, rank)


def raise_at_place(step: Step) -> None:
    if step == Step.PLACE:
        raise ArithmeticError("not this step")


def test_what_a_step_hook_raises_ends_the_call_everywhere(pools):
    pools.run(3, interrupt_the_hook)


def call_in_another_order(rank: Rank) -> None:
    exchange = open_exchange("windows", rank, SCENARIO, timeout_s=1.0)
    mine = SCENARIO.inputs(rank.size)[rank.rank]
    rows = exchange.dispatch(*mine)
    exchange.combine(rows.out.zero_(), rows)
    out_of_step = (
        (lambda: exchange.combine(rows.out, rows)) if rank.rank == CULPRIT else (lambda: exchange.dispatch(*mine))
    )
    with pytest.raises((PeerFault, ProtocolMismatch, SessionPoisoned)):
        out_of_step()
    require_poisoned(exchange, rank)


def test_a_rank_that_combines_while_others_dispatch_hangs_nobody(pools):
    pools.run(3, call_in_another_order)


def lose_a_rank_at_create(rank: Rank, implementation: str) -> None:
    rank.note("connected")
    if rank.rank == CULPRIT:
        rank.wait_for_parent()
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerLost):
        open_exchange(implementation, rank, SCENARIO)


def test_a_rank_that_dies_before_create_is_lost(fresh_pool, implementation):
    pool = fresh_pool(3)
    pool.start(lose_a_rank_at_create, implementation)
    pool.await_notes("connected", range(3))
    pool.release(CULPRIT)
    assert pool.collect(dead={CULPRIT})[CULPRIT] == Ended(-signal.SIGKILL)


def lose_a_rank_of_the_baseline(rank: Rank) -> None:
    exchange = open_exchange("collective", rank, SCENARIO)
    call(exchange, "decode", rank)
    if rank.rank == CULPRIT:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerLost):
        call(exchange, "decode", rank)
    require_poisoned(exchange, rank)


def test_the_baseline_reports_a_lost_rank(fresh_pool):
    pool = fresh_pool(3)
    pool.start(lose_a_rank_of_the_baseline)
    assert pool.collect(dead={CULPRIT})[CULPRIT] == Ended(-signal.SIGKILL)


def wait_for_an_absent_rank(rank: Rank, how: str) -> None:
    exchange = open_exchange("windows", rank, SCENARIO)
    call(exchange, how, rank)
    if rank.rank == CULPRIT:
        rank.wait_for_parent()
        exchange.close()
        return
    exchange.watch_steps(lambda step: rank.note("waiting") if step == Step.COUNTS else None)
    with pytest.raises(KeyboardInterrupt):
        call(exchange, how, rank)
    rank.note("interrupted")
    exchange.watch_steps(None)
    require_poisoned(exchange, rank)


@pytest.mark.parametrize("how", ["decode", "run-prefill"])
def test_ctrl_c_ends_a_wait(fresh_pool, how):
    pool = fresh_pool(2)
    pool.start(wait_for_an_absent_rank, how)
    pool.await_notes("waiting", [0])
    pool.signal(0, signal.SIGINT)
    # The timeout is 30 s, and nothing else would end the wait: rank 1 is not released before rank 0 is done.
    pool.await_notes("interrupted", [0], deadline_s=25.0)
    pool.release(CULPRIT)
    pool.collect()


def be_interrupted_between_steps(rank: Rank, how: str) -> Seen | None:
    exchange = open_exchange("windows", rank, SCENARIO)
    call(exchange, how, rank)
    if rank.rank != CULPRIT:
        return see_fault(exchange, rank, how, calls=1)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ExchangeSteps, "received", interrupted)
        call(exchange, how, rank)
    require_poisoned(exchange, rank)
    return None


@pytest.mark.parametrize("how", ["run-decode", "prepared"])
def test_ctrl_c_between_two_steps_is_told_to_the_other_ranks(fresh_pool, how):
    pool = fresh_pool(2)
    pool.start(be_interrupted_between_steps, how)
    seen = pool.collect()[1 - CULPRIT]
    assert (seen.code, seen.rank) == (PeerLost.code, CULPRIT), seen


def interrupted_in_the_second(call: Callable[..., Any], rank: Rank) -> Callable[..., Any]:
    """`call`, the second of which is done and then interrupted as soon as the parent wants it."""
    calls = 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        result = call(*arguments)
        if calls == 2:
            rank.note("begun")
            rank.wait_for_parent()
            raise KeyboardInterrupt
        return result

    return interrupted


def wait_for_an_absent_rank_while_overlapping(rank: Rank, is_signalled: bool) -> None:
    exchange = open_exchange("windows", rank, SCENARIO, **small_window(rank), workers=2)
    call(exchange, "run-prefill", rank)
    announced = 0

    def stay_away_from_the_third_round(step: Step) -> None:
        nonlocal announced
        announced += step == Step.ANNOUNCE
        # The plan and two rounds have been announced before.
        if announced == 4 and step == Step.ANNOUNCE:
            rank.note("away")
            rank.wait_for_parent()

    if rank.rank == CULPRIT:
        exchange.watch_steps(stay_away_from_the_third_round)
        with pytest.raises((PeerFault, SessionPoisoned)):
            call(exchange, "run-prefill", rank)
        return
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if not is_signalled:
            patch.setattr(ThreadPoolExecutor, "submit", interrupted_in_the_second(ThreadPoolExecutor.submit, rank))
        call(exchange, "run-prefill", rank)
    rank.note("interrupted")
    require_poisoned(exchange, rank)


@pytest.mark.parametrize("is_signalled", [True, False], ids=["while it waits", "as the thread begins"])
def test_ctrl_c_ends_overlapping_rounds(fresh_pool, is_signalled):
    pool = fresh_pool(2)
    pool.start(wait_for_an_absent_rank_while_overlapping, is_signalled)
    pool.await_notes("away", [CULPRIT])
    if is_signalled:
        pool.signal(0, signal.SIGINT)
    else:
        pool.await_notes("begun", [0])
        pool.release(0)
    pool.await_notes("interrupted", [0], deadline_s=25.0)
    pool.release(CULPRIT)
    pool.collect()


def leave_in_a_forked_process(rank: Rank) -> None:
    with open_exchange("windows", rank, SCENARIO, slots=2) as exchange:
        call(exchange, "run-decode", rank)
        rows = exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
        child = os.fork()
        if child == 0:
            try:
                x, ids, weights = SCENARIO.inputs(rank.size)[rank.rank]
                for use in (
                    lambda: exchange.dispatch(x, ids, weights),
                    lambda: exchange.dispatch(x, ids.float(), weights),
                    lambda: exchange.run(x, ids, weights, rows.out.copy_, phase="prefill"),
                    lambda: exchange.combine(rows.out, rows),
                ):
                    with pytest.raises(SessionPoisoned, match="fork"):
                        use()
                with pytest.raises(ArithmeticError), exchange:
                    raise ArithmeticError("in the child")
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        compute(rows, scale_by_expert, rank)
        exchange.combine(rows.out, rows)
        call(exchange, "run-prefill", rank)


def test_a_forked_process_cannot_use_or_end_the_exchange_of_its_parent(pools):
    pools.run(2, leave_in_a_forked_process)
