"""The library for Ascend devices, over stand-ins for CANN's runtime and the model of the kernels. No NPU has run it.

It is the code that a device would run, but for the launch itself: sessions, arguments, streams, captures, verdicts, the
watch over peers, and everything that exchange.h promises.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import partial
from itertools import groupby

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import (
    AscendMoeError,
    InvalidInput,
    PeerLost,
    PeerTimeout,
    SessionPoisoned,
    WindowTooSmall,
)
from sglang_ascend_moe.exchange.control.trace_file import read_trace
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native.codes import Step
from tests.exchange.control.test_trace_file import CALLED, DISPATCH
from tests.exchange.pool import Ended, Rank
from tests.exchange.schedules.test_rounds import SCENARIOS as ROUNDS
from tests.exchange.schedules.test_rounds import run_in_rounds
from tests.exchange.test_bit_exact import SCENARIOS, exchange_in_every_schedule
from tests.exchange.test_handles import combine_again_and_again, cross_epochs, hold_two_handles
from tests.exchange.test_joint_refusals import disagree, refuse_one_rank
from tests.exchange.test_refusal_sequences import mix_refusals

from .device_library import OneStream, beside_hosts, on_device, on_device_library
from .test_step_times import check_events

OPTIONS = {"num_experts": 6, "hidden": 64, "max_tokens": 8, "topk": 2}


def tokens_of(rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    x = torch.randn(5, 64, generator=generator).to(torch.bfloat16)
    ids = torch.randint(0, 6, (5, 2), generator=generator)
    return x, ids, torch.rand(5, 2, generator=generator)


@pytest.mark.parametrize("name", ["bf16-int64", "top8", "no-token-on-some-ranks"])
def test_both_schedules_equal_the_reference_to_the_bit(pools, device_library, name):
    pools.run(2, on_device, device_library, 4, exchange_in_every_schedule, "windows", SCENARIOS[name])


def test_devices_and_hosts_work_in_one_exchange(pools, device_library):
    pools.run(3, beside_hosts, device_library, 2, exchange_in_every_schedule, "windows", SCENARIOS["top8"])


@pytest.mark.parametrize("name", ["uneven", "all-to-one-expert"])
def test_rounds_of_a_prefill_are_planned_over_the_device(pools, device_library, name):
    rounds = pools.run(2, on_device, device_library, 4, run_in_rounds, ROUNDS[name], 2)
    assert len(set(rounds)) == 1
    assert rounds[0] > 1


def waits(calls: list[str]) -> int:
    """How often the host waited, which takes more than one call if it takes long."""
    return [call for call, _ in groupby(calls)].count("aclrtSynchronizeStream")


def count_waits_of_a_prefill(rank: Rank, library: str) -> int:
    with on_device_library(library, 2) as streams, Exchange.create(rank.group, **OPTIONS) as exchange:
        streams.cann.calls()
        exchange.run(*tokens_of(rank.rank), repeat_rows(streams), phase="prefill")
        return waits(streams.cann.calls())


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_prefill_waits_as_often_for_many_ranks_as_for_one(pools, device_library, ranks):
    # For its ids twice, the plan, its headers, its blocks, and the verdicts of dispatch and combine.
    assert pools.run(ranks, count_waits_of_a_prefill, device_library) == [7] * ranks


def test_handles_and_epochs(pools, device_library):
    pools.run(2, on_device, device_library, 2, combine_again_and_again, "windows")
    pools.run(2, on_device, device_library, 2, hold_two_handles, "windows", (1, 0))
    pools.run(2, on_device, device_library, 2, cross_epochs, 2**32 - 3)


@pytest.mark.parametrize("name", ["hidden", "id-past-the-end"])
def test_bad_input_on_one_rank_is_refused_on_every_rank(pools, device_library, name):
    pools.run(3, on_device, device_library, 2, refuse_one_rank, "windows", name, "dispatch-decode")


def test_mismatches_and_refusals_in_any_order(pools, device_library):
    pools.run(3, on_device, device_library, 2, disagree, "windows", "dispatch-decode", "dispatch-prefill")
    pools.run(3, beside_hosts, device_library, 2, mix_refusals, "windows", 30)


def repeat_rows(streams: OneStream) -> Callable[[ExpertRows], None]:
    """Experts that give back what they get, put on the stream as those of a device are."""

    def experts(rows: ExpertRows) -> None:
        streams.copy(rows.out, rows.rows)

    return experts


def wait_and_check(exchange: Exchange, _streams: OneStream) -> None:
    exchange.check_replays()


def fetch_and_check(exchange: Exchange, streams: OneStream) -> None:
    """As a server does, which waits for its tokens anyway."""
    fetched = exchange.fetch_verdicts()
    assert streams.cann.library.aclrtSynchronizeStream(streams.stream) == 0
    exchange.raise_fetched(fetched)


Check = Callable[[Exchange, OneStream], None]
in_either_way = pytest.mark.parametrize("check", [wait_and_check, fetch_and_check])


def replay_and_call_in_turn(rank: Rank, library: str, check: Check) -> None:
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)
        replayed, called = torch.empty_like(x), torch.empty_like(x)
        experts = repeat_rows(streams)
        with Exchange.create(rank.group, **OPTIONS) as exchange:
            exchange.run(x, ids, weights, experts, out=called)
            prepared = exchange.prepare(x, ids, weights, experts, replayed)
            streams.cann.calls()
            with streams.cann.capture(streams.stream) as graph:
                prepared()
            captured = streams.cann.calls()
            # Two launches, beside the copy of the experts: nothing that waits, and no memory.
            captured = [call for call in captured if call != "aclmdlRICaptureGetInfo"]
            assert captured == ["moe_dispatch", "aclrtMemcpyAsync", "moe_combine"]
            allocated = streams.cann.allocated()
            for turn in range(12):
                x.copy_(torch.randn(5, 64, generator=torch.Generator().manual_seed(100 + turn)).to(x.dtype))
                ids.copy_((ids + 1) % 6)
                exchange.run(x, ids, weights, experts, out=called)
                if turn % 3 == rank.rank:
                    expected = called.clone()
                    exchange.run(x, ids, weights, experts, out=called)
                    assert torch.equal(called, expected)
                else:
                    epoch = exchange.epoch
                    graph.replay()
                    check(exchange, streams)
                    assert torch.equal(replayed, called)
                    assert exchange.epoch == epoch + 1
            assert streams.cann.allocated() == allocated


@in_either_way
def test_a_captured_call_is_two_launches_and_is_replayed_beside_calls(pools, device_library, check):
    pools.run(2, replay_and_call_in_turn, device_library, check)


def call_without_waiting(rank: Rank, library: str, phase: str, check: Check) -> list[str]:
    """What such a call has CANN do, after calls with other tokens gave the sums of those that are waited for."""
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)
        experts = repeat_rows(streams)
        found, waited = torch.empty_like(x), torch.empty_like(x)
        with Exchange.create(rank.group, **OPTIONS) as exchange:
            for turn in range(4):
                ids.copy_((ids + turn) % 6)
                exchange.run(x, ids, weights, experts, phase=phase, out=waited)
                assert not exchange.unverified
                exchange.run(x, ids, weights, experts, phase=phase, out=found, wait=False, most_tokens=5 * rank.size)
                assert exchange.unverified
                check(exchange, streams)
                assert not exchange.unverified
                assert torch.equal(found, waited)
            streams.cann.calls()
            exchange.run(x, ids, weights, experts, phase=phase, out=found, wait=False, most_tokens=5 * rank.size)
            calls = streams.cann.calls()
            check(exchange, streams)
            return calls


@in_either_way
def test_a_decode_call_is_two_launches_if_nobody_waits_for_it(pools, device_library, check):
    for calls in pools.run(2, call_without_waiting, device_library, "decode", check):
        assert calls == ["moe_dispatch", "aclrtMemcpyAsync", "moe_combine"]


@in_either_way
def test_of_a_prefill_call_only_its_ids_and_plan_are_waited_for(pools, device_library, check):
    for calls in pools.run(2, call_without_waiting, device_library, "prefill", check):
        last_wait = max(place for place, call in enumerate(calls) if call.startswith("aclrtSynchronizeStream"))
        assert waits(calls) == 4
        assert calls[last_wait + 1 :] == ["moe_dispatch", "aclrtMemcpyAsync", "moe_combine"]


LAYERS = (3, 5)
RING, LOST = 256, 9
"""Exchanges whose times a device keeps, and so many more."""


def trace_calls_and_replays(rank: Rank, library: str, folder: str, check: Check) -> list[int]:
    """Traces a call and two replays of a graph that was captured before, and then so many that some are overwritten.

    Returns the epochs before the first of them, after the three, and after all."""
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)

        def experts(rows: ExpertRows, layer: int) -> None:
            rows.ticket.session.trace_layer(rows.ticket.call, layer)
            repeat_rows(streams)(rows)

        called, replayed = (partial(experts, layer=layer) for layer in LAYERS)
        with Exchange.create(rank.group, **OPTIONS) as exchange:
            exchange.run(x, ids, weights, called)
            prepared = exchange.prepare(x, ids, weights, replayed, torch.empty_like(x))
            with streams.cann.capture(streams.stream) as graph:
                prepared()
            graph.replay()
            check(exchange, streams)
            exchange.trace(folder)
            epochs = [exchange.epoch]
            exchange.run(x, ids, weights, called)
            for _ in range(2):
                graph.replay()
            check(exchange, streams)
            epochs.append(exchange.epoch)
            for _ in range(RING + LOST):
                graph.replay()
            check(exchange, streams)
            epochs.append(exchange.epoch)
            exchange.trace(None)
            graph.replay()
            check(exchange, streams)
            return epochs


@in_either_way
def test_steps_of_calls_and_replays_come_from_the_device_with_their_layers(pools, device_library, check, tmp_path):
    before_ns = time.monotonic_ns()
    (first, third, last), _ = pools.run(2, trace_calls_and_replays, device_library, str(tmp_path), check)
    after_ns = time.monotonic_ns()
    for trace in map(read_trace, tmp_path.iterdir()):
        epochs = [*range(first + 1, third + 1), *range(third + LOST + 1, last + 1)]
        assert [(event.epoch, event.step) for event in trace.events] == [
            (epoch, step) for epoch in epochs for step in CALLED
        ]
        layers = {event.epoch: event.layer for event in trace.events if event.step == Step.DONE}
        assert layers == {epoch: LAYERS[epoch > first + 1] for epoch in epochs}
        assert trace.lost == LOST * len(CALLED)
        check_events(trace.events)
        assert before_ns <= trace.events[0].begin_ns
        assert trace.events[-1].end_ns <= after_ns


def replay_past_a_failure(rank: Rank, library: str, folder: str, check: Check) -> int:
    """Rank 1 does not combine what rank 0 replays, which goes on with replays that are refused.

    Returns the epoch of that exchange."""
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)

        def experts(rows: ExpertRows) -> None:
            rows.ticket.session.trace_layer(rows.ticket.call, LAYERS[0])
            repeat_rows(streams)(rows)

        with Exchange.create(rank.group, **OPTIONS, timeout_s=1.2) as exchange:
            prepared = exchange.prepare(x, ids, weights, experts, torch.empty_like(x))
            with streams.cann.capture(streams.stream) as graph:
                prepared()
            exchange.trace(folder)
            dist.barrier(rank.group)
            graph.replay()
            check(exchange, streams)
            epoch = exchange.epoch + 1
            if rank.rank == 1:
                exchange.dispatch(x, ids, weights)
            else:
                streams.cann.calls()
                for _ in range(3):
                    graph.replay()
                with pytest.raises(PeerTimeout):
                    check(exchange, streams)
                # The clock was asked more than a second ago, and is not set on a device on which something failed.
                assert "moe_stamp" not in streams.cann.calls()
            dist.barrier(rank.group)
            return epoch


@in_either_way
def test_the_times_of_a_launch_that_failed_are_kept_and_name_who_was_missing(pools, device_library, check, tmp_path):
    epoch, _ = pools.run(2, replay_past_a_failure, device_library, str(tmp_path), check)
    [events] = [trace.events for trace in map(read_trace, tmp_path.iterdir()) if trace.header.rank == 0]
    assert [(event.epoch, event.step) for event in events] == [
        *((epoch - 1, step) for step in CALLED),
        *((epoch, step) for step in (*DISPATCH, Step.DONE)),
    ]
    check_events(events)
    assert (events[-1].waited_for, events[-1].layer) == (1, LAYERS[0])


def fail_without_waiting(rank: Rank, library: str, phase: str, check: Check) -> str:
    """Rank 1 brings an expert that is not there; calls that follow before anyone looks go well."""
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)
        experts, good = repeat_rows(streams), ids.clone()
        with Exchange.create(rank.group, **OPTIONS) as exchange:
            # The first call is waited for.
            expected = exchange.run(x, ids, weights, experts, wait=False, most_tokens=5 * rank.size)
            assert not exchange.unverified
            if rank.rank == 1:
                ids[3, 1] = 7
            # What a launch writes lives until it has run: no allocator of a device stands in here.
            out, more = torch.empty_like(x), torch.empty_like(x)
            exchange.run(x, ids, weights, experts, phase=phase, out=out, wait=False, most_tokens=5 * rank.size)
            exchange.run(x, good, weights, experts, out=more, wait=False, most_tokens=5 * rank.size)
            with pytest.raises(InvalidInput) as refusal:
                check(exchange, streams)
            exchange.run(x, good, weights, experts, out=out, wait=False, most_tokens=5 * rank.size)
            check(exchange, streams)
            assert torch.equal(out, expected)
            return str(refusal.value)


@in_either_way
def test_what_a_call_found_that_nobody_waited_for_is_raised_by_the_next_check(pools, device_library, check):
    for message in pools.run(2, fail_without_waiting, device_library, "decode", check):
        assert "expert id 7" in message


def bring_more_than_most_tokens(rank: Rank, library: str, check: Check) -> str:
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)
        with Exchange.create(rank.group, **OPTIONS) as exchange:
            out = exchange.run(x, ids, weights, repeat_rows(streams))
            ids.zero_()
            exchange.run(x, ids, weights, repeat_rows(streams), out=out, wait=False, most_tokens=3)
            with pytest.raises(WindowTooSmall) as refusal:
                check(exchange, streams)
            return str(refusal.value)


@in_either_way
def test_more_tokens_than_most_tokens_are_refused_as_by_a_smaller_window(pools, device_library, check):
    assert len(set(pools.run(2, bring_more_than_most_tokens, device_library, check))) == 1


def replay_what_is_refused(rank: Rank, library: str, check: Check) -> None:
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)
        experts = repeat_rows(streams)
        with Exchange.create(rank.group, **OPTIONS) as exchange:
            exchange.run(x, ids, weights, experts)
            prepared = exchange.prepare(x, ids, weights, experts, torch.empty_like(x))
            with streams.cann.capture(streams.stream) as graph:
                prepared()
            good = ids.clone()
            if rank.rank == 1:
                ids[3, 1] = 7
            graph.replay()
            assert streams.cann.library.aclrtSynchronizeStream(streams.stream) == 0
            # What a later replay finds does not take the place of it.
            ids.copy_(good)
            graph.replay()
            with pytest.raises(InvalidInput, match="expert id 7"):
                check(exchange, streams)
            graph.replay()
            check(exchange, streams)


@in_either_way
def test_what_a_replay_found_wrong_is_raised_by_the_next_check_and_not_again(pools, device_library, check):
    pools.run(2, replay_what_is_refused, device_library, check)


def bring_more_than_was_promised(rank: Rank, library: str) -> str:
    """Rank 0 has said of graphs of one token that no rank brings more, and rank 1 brings five, all to rank 0."""
    tokens = 5 if rank.rank else 1
    with on_device_library(library, 2) as streams:
        x, ids, weights = (tensor[:tokens] for tensor in tokens_of(rank.rank))
        ids.zero_()
        handed = []

        def experts(rows: ExpertRows) -> None:
            handed.append(rows.ticket.at_most)
            repeat_rows(streams)(rows)

        with Exchange.create(rank.group, timeout_s=1, **OPTIONS) as exchange:
            exchange.run(x, ids, weights, repeat_rows(streams))
            prepared = exchange.prepare(x, ids, weights, experts, torch.empty_like(x), most_tokens=2 * tokens)
            with streams.cann.capture(streams.stream) as graph:
                prepared()
            assert handed == [min(2 * tokens * OPTIONS["topk"], exchange.window.capacity_rows)]
            graph.replay()
            with pytest.raises(AscendMoeError) as refused:
                exchange.check_replays()
        return f"{type(refused.value).__name__}: {refused.value}"


def test_more_rows_than_a_graph_was_promised_are_refused_before_they_are_handed_on(pools, device_library):
    promised, other = pools.run(2, bring_more_than_was_promised, device_library)
    assert promised.startswith("WindowTooSmall")
    # Whose deadline comes first: its own, or that of the other's combine, which it is told.
    assert other.startswith(("PeerTimeout", "SessionPoisoned"))


def open_and_prepare(rank: Rank, streams: OneStream) -> tuple[Exchange, Callable[[], object], Callable[[], None]]:
    """An exchange that has run once; a call of the same layer; and the layer for a graph."""
    x, ids, weights = tokens_of(rank.rank)
    experts = repeat_rows(streams)
    exchange = Exchange.create(rank.group, **OPTIONS)
    run = partial(exchange.run, x, ids, weights, experts)
    run()
    return exchange, run, exchange.prepare(x, ids, weights, experts, torch.empty_like(x))


def lose_a_peer_in_a_replay(rank: Rank, library: str, check: Check) -> str | None:
    with on_device_library(library, 2) as streams:
        exchange, run, prepared = open_and_prepare(rank, streams)
        with streams.cann.capture(streams.stream) as graph:
            prepared()
        # A rank that ends while another still reads its words would end that one's call, too.
        dist.barrier(rank.group)
        if rank.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        graph.replay()
        with pytest.raises(PeerLost) as lost:
            check(exchange, streams)
        with pytest.raises((PeerLost, SessionPoisoned), match="rank 1"):
            run()
        return str(lost.value)


def lose_a_peer_in_a_capture(rank: Rank, library: str) -> str | None:
    with on_device_library(library, 2) as streams:
        exchange, _, prepared = open_and_prepare(rank, streams)
        dist.barrier(rank.group)
        if rank.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with streams.cann.capture(streams.stream) as graph:
            prepared()
            # The watcher reads the peer's status line and its own, and writes that, while the capture runs.
            waits = 0
            while waits < 3:
                waits += streams.cann.calls().count("aclrtSynchronizeStream")
        graph.replay()
        with pytest.raises(PeerLost) as lost:
            exchange.check_replays()
        return str(lost.value)


def fail_after_a_replay(rank: Rank, library: str, check: Check) -> None:
    """Both have replayed well when rank 1 fails: rank 0 may have got something of it since, by other ways."""
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)
        exchange = Exchange.create(rank.group, **OPTIONS)
        exchange.run(x, ids, weights, repeat_rows(streams))
        prepared = exchange.prepare(x, ids, weights, repeat_rows(streams), torch.empty_like(x))
        with streams.cann.capture(streams.stream) as graph:
            prepared()
        graph.replay()
        check(exchange, streams)
        dist.barrier(rank.group)
        if rank.rank == 1:
            with pytest.raises(ArithmeticError), exchange:
                raise ArithmeticError("no such expert")
        dist.barrier(rank.group)
        if rank.rank == 0:
            with pytest.raises(PeerLost, match="rank 1") as told:
                check(exchange, streams)
            assert told.value.rank == 1
            exchange.close()


@in_either_way
def test_a_rank_is_told_what_another_found_after_its_own_replay(pools, device_library, check):
    pools.run(2, fail_after_a_replay, device_library, check)


def call_after(exchange: Exchange, streams: OneStream) -> None:
    """A call that finds the session poisoned says what poisoned it, if nobody has looked at the replay."""
    exchange.run(*tokens_of(exchange.rank), repeat_rows(streams))


@pytest.mark.parametrize("check", [wait_and_check, fetch_and_check, call_after])
def test_a_peer_that_dies_is_told_to_a_kernel_that_waits_for_it(fresh_pool, device_library, check):
    pool = fresh_pool(3)
    pool.start(lose_a_peer_in_a_replay, device_library, check)
    results = pool.collect(dead={1})
    assert results[1] == Ended(-signal.SIGKILL)
    # The timeout is 30 s: a PeerLost means that the watcher saw it.
    assert all("rank 1 has died" in results[rank] for rank in (0, 2))


def test_a_peer_that_dies_while_a_graph_is_captured_is_told_to_its_replay(fresh_pool, device_library):
    pool = fresh_pool(2)
    pool.start(lose_a_peer_in_a_capture, device_library)
    results = pool.collect(dead={1})
    # Long before the timeout.
    assert "rank 1 has died" in results[0]


def run_on_fewer_cores(rank: Rank, library: str) -> None:
    with on_device_library(library, 4) as streams:
        x, ids, weights = tokens_of(rank.rank)
        results = []
        with Exchange.create(rank.group, **OPTIONS) as exchange:
            for cores in (0, 3, 1):
                streams.cann.library.cann_stand_in_limit_streams(cores)
                streams.stream = streams.cann.new_stream()
                for phase in ("decode", "prefill"):
                    results.append(exchange.run(x, ids, weights, repeat_rows(streams), phase=phase))
        assert all(torch.equal(result, results[0]) for result in results)


def test_a_stream_with_fewer_cores_gets_launches_of_as_many(pools, device_library):
    """All cores of a launch wait for each other."""
    pools.run(2, run_on_fewer_cores, device_library)


def fail_a_call_of_cann(rank: Rank, library: str, refused: str) -> None:
    with on_device_library(library, 2) as streams:
        x, ids, weights = tokens_of(rank.rank)
        experts = repeat_rows(streams)
        exchange = Exchange.create(rank.group, **OPTIONS)
        exchange.run(x, ids, weights, experts)
        dist.barrier(rank.group)
        if rank.rank == 1:
            streams.cann.refuse(refused, 507018)
        with pytest.raises(PeerLost) as failed:
            exchange.run(x, ids, weights, experts)
        assert failed.value.rank == 1
        if rank.rank == 1:
            assert f"{refused} returned 507018: said the stand-in" in str(failed.value)


@pytest.mark.parametrize("refused", ["aclrtMemcpyAsync", "aclmdlRICaptureGetInfo"])
def test_what_cann_refuses_is_raised_in_its_words_and_told_to_the_others(pools, device_library, refused):
    pools.run(3, fail_a_call_of_cann, device_library, refused)


def lack_memory(rank: Rank, library: str) -> None:
    with on_device_library(library, 2) as streams:
        streams.cann.refuse("aclrtMalloc", 207001)
        with pytest.raises(PeerLost, match="aclrtMalloc returned 207001: said the stand-in"):
            Exchange.create(rank.group, **OPTIONS)


def test_a_device_without_memory_ends_the_start_with_the_words_of_cann(pools, device_library):
    pools.run(2, lack_memory, device_library)


def open_and_close(rank: Rank, library: str) -> None:
    with on_device_library(library, 2) as streams:
        before = streams.cann.allocated()
        for _ in range(3):
            with Exchange.create(rank.group, **OPTIONS) as exchange:
                exchange.run(*tokens_of(rank.rank), repeat_rows(streams))
            assert streams.cann.allocated() == before


def test_closing_gives_all_memory_of_the_device_back(pools, device_library):
    pools.run(2, open_and_close, device_library)
