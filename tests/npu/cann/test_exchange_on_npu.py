"""An exchange over emulated NPUs: rows, counts and sums are those of the host's, to the bit, however late work runs.

Everything of ours is as on a device: `Exchange`, windows from memfabric, the library for Ascend devices, the operators
for torch. What they call is stood in for, and the kernels run on the host model. No NPU has run this.
"""

from __future__ import annotations

import signal
import threading
from typing import Any, NamedTuple

import pytest
import torch

from sglang_ascend_moe.errors import InvalidInput, PeerLost
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native.codes import Step
from sglang_ascend_moe.windows.layout import bytes_for_capacity, exchange_parameters
from tests.exchange.pool import Rank
from tests.exchange.surface import granting
from tests.npu import emulated
from tests.npu.cann.conftest import NpuRanks

pytestmark = pytest.mark.nightly

SEEDS = {"at-once": emulated.SEED_AT_ONCE, "when-awaited": emulated.SEED_WHEN_AWAITED, "random-1": 1, "random-2": 2}
HIDDEN, TOPK, EXPERTS_PER_RANK, MAX_TOKENS = 64, 3, 3, 16


class Batch(NamedTuple):
    """What one rank brings to a call."""

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device) for tensor in self))


def batch_of(rank: Rank, turn: int, tokens: int) -> Batch:
    generator = torch.Generator().manual_seed(1000 * turn + rank.rank)
    ids = torch.randint(-1, EXPERTS_PER_RANK * rank.size, (tokens, TOPK), generator=generator)
    x = torch.randn(tokens, HIDDEN, generator=generator).to(torch.bfloat16)
    return Batch(x, ids, torch.rand(tokens, TOPK, generator=generator))


def device_of(rank: Rank) -> torch.device:
    return torch.device("npu", rank.rank + 1)


def open_exchange(rank: Rank, device: torch.device, **options: Any) -> Exchange:
    shape = {"num_experts": EXPERTS_PER_RANK * rank.size, "hidden": HIDDEN, "max_tokens": MAX_TOKENS, "topk": TOPK}
    return Exchange.create(rank.group, **shape, **options, device=device)


def scale_rows(rows: ExpertRows) -> None:
    """Experts whose results tell rows apart, also by where they lie; what is past the last row is left alone."""
    count = rows.ticket.at_most
    places = torch.arange(count, device=rows.rows.device).unsqueeze(1) % 7 + 1
    taken = rows.rows[:count].float()
    if rows.scales is not None:
        taken = taken * rows.scales[:count].unsqueeze(1)
    rows.out[:count].copy_((taken * places).to(rows.out.dtype))


def call_in_turn(exchange: Exchange, batch: Batch, phase: str) -> list[torch.Tensor]:
    """What every call of an exchange returns, on the host."""
    rows = exchange.dispatch(*batch, phase=phase)
    total = int(rows.counts.sum())
    seen = [rows.counts.cpu(), rows.rows[:total].cpu(), exchange.counts_matrix.cpu()]
    if rows.scales is not None:
        seen.append(rows.scales[:total].cpu())
    scale_rows(rows)
    seen.append(exchange.combine(rows.out, rows).cpu())
    seen.append(exchange.run(*batch, scale_rows, phase=phase).cpu())
    most = MAX_TOKENS * exchange.parameters.ranks
    unwaited = exchange.run(*batch, scale_rows, phase=phase, wait=False, most_tokens=most)
    exchange.check_replays()
    return [*seen, unwaited.cpu()]


def compare_with_host(rank: Rank, turns: int, options: dict[str, Any]) -> list[int]:
    with (
        open_exchange(rank, torch.device("cpu"), **options) as host,
        open_exchange(rank, device_of(rank), **options) as npu,
    ):
        for turn in range(turns):
            tokens = (5 + 3 * turn + 7 * rank.rank) % (MAX_TOKENS + 1)
            batch = batch_of(rank, turn, tokens)
            for phase in ("decode", "prefill"):
                expected = call_in_turn(host, batch, phase)
                found = call_in_turn(npu, batch.to(device_of(rank)), phase)
                for one, another in zip(found, expected, strict=True):
                    assert torch.equal(one, another), (turn, phase)
        assert npu.epochs == host.epochs
        return [counts.rounds for counts in npu.observation.phases.values()]


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_calls_give_the_bits_of_the_host(npu_ranks, seed):
    npu_ranks.run(2, compare_with_host, 3, {}, seed=seed)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_quantised_rows_have_the_bits_of_the_host(npu_ranks, seed):
    npu_ranks.run(2, compare_with_host, 2, {"quant": "int8"}, seed=seed)


def test_where_places_are_granted_calls_give_the_bits_of_the_host(npu_ranks):
    npu_ranks.run(2, granting, compare_with_host, 2, {})


def move_between_streams(rank: Rank) -> None:
    """Each part of a call on another stream than the one before, in whose order it is put."""
    device = device_of(rank)
    with open_exchange(rank, torch.device("cpu")) as host, open_exchange(rank, device) as npu:
        first, second = torch.npu.Stream(), torch.npu.Stream()
        for turn in range(3):
            batch = batch_of(rank, turn, 5 + turn)
            given = batch.to(device)
            torch.npu.synchronize()
            host_rows = host.dispatch(*batch)
            scale_rows(host_rows)
            expected = [host.combine(host_rows.out, host_rows)]
            expected.append(host.combine(host_rows.out * 2, host_rows))
            expected.append(host.run(*batch, scale_rows, phase="prefill"))
            found = []
            with torch.npu.stream(first):
                # What a call reads has just been put on its stream.
                rows = npu.dispatch(given.x * 1, given.ids * 1, given.weights * 1)
            second.wait_stream(first)
            with torch.npu.stream(second):
                scale_rows(rows)
                found.append(npu.combine(rows.out, rows) * 1)
            first.wait_stream(second)
            with torch.npu.stream(first):
                found.append(npu.combine(rows.out * 2, rows) * 1)
            second.wait_stream(first)
            with torch.npu.stream(second):
                found.append(npu.run(given.x * 1, given.ids * 1, given.weights * 1, scale_rows, phase="prefill"))
            torch.npu.synchronize()
            for one, another in zip(found, expected, strict=True):
                assert torch.equal(one.cpu(), another), turn


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_a_call_is_in_the_order_of_the_stream_that_is_current(npu_ranks, seed):
    npu_ranks.run(2, move_between_streams, seed=seed)


def call_first_on_another_stream(rank: Rank) -> None:
    device = device_of(rank)
    with open_exchange(rank, torch.device("cpu")) as host, open_exchange(rank, device) as npu:
        batch = batch_of(rank, 0, 6)
        expected = host.run(*batch, scale_rows)
        with torch.npu.stream(torch.npu.Stream()):
            found = npu.run(*batch.to(device), scale_rows)
        torch.npu.synchronize()
        assert torch.equal(found.cpu(), expected)
        assert torch.equal(npu.counts_matrix.cpu(), host.counts_matrix)


def open_and_call_on_two_streams(npu_ranks: NpuRanks, seed: int) -> None:
    npu_ranks.run(2, call_first_on_another_stream, seed=seed)


def test_the_first_call_may_be_on_another_stream_than_the_opening(npu_ranks):
    open_and_call_on_two_streams(npu_ranks, emulated.SEED_WHEN_AWAITED)


def leave_on_another_thread(rank: Rank) -> str | None:
    """As a server does that ends: one thread tells the others while another one may still be in a call."""
    batch = batch_of(rank, 0, 4).to(device_of(rank))
    allocated = torch.npu.memory_allocated()
    exchange = open_exchange(rank, device_of(rank))
    exchange.run(*batch, scale_rows)
    if rank.rank == 1:
        thread = threading.Thread(target=exchange.close)
        thread.start()
        thread.join()
        del exchange, thread
        assert torch.npu.memory_allocated() == allocated
        return None
    with pytest.raises(PeerLost, match="rank 1 closed the exchange") as told:
        exchange.run(*batch, scale_rows)
    exchange.close()
    return str(told.value)


def test_a_rank_may_leave_on_a_thread_that_has_not_chosen_a_device(npu_ranks):
    npu_ranks.run(2, leave_on_another_thread, seed=emulated.SEED_WHEN_AWAITED)


def refuse_on_another_stream(rank: Rank) -> None:
    device = device_of(rank)
    with open_exchange(rank, torch.device("cpu")) as host, open_exchange(rank, device) as npu:
        first, second = torch.npu.Stream(), torch.npu.Stream()
        for turn in range(3):
            batch = batch_of(rank, turn, 6)
            with torch.npu.stream(first):
                found = npu.run(*batch.to(device), scale_rows)
            second.wait_stream(first)
            with torch.npu.stream(second), pytest.raises(InvalidInput, match=r"rank \(?1"):
                given = batch.to(device)
                npu.run(given.x[:, 1:] if rank.rank == 1 else given.x, given.ids, given.weights, scale_rows)
            first.wait_stream(second)
            torch.npu.synchronize()
            assert torch.equal(found.cpu(), host.run(*batch, scale_rows)), turn


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_a_refusal_is_told_on_any_stream(npu_ranks, seed):
    npu_ranks.run(2, refuse_on_another_stream, seed=seed)


def meet_late(rank: Rank) -> None:
    """Rank 1 comes when the parent lets it; rank 0 notes each signal that it gets while it waits."""
    device = device_of(rank)
    batch = batch_of(rank, 0, 6)
    with open_exchange(rank, torch.device("cpu")) as host, open_exchange(rank, device) as npu:
        expected = host.run(*batch, scale_rows)
        given = batch.to(device)
        if rank.rank == 1:
            rank.wait_for_parent()
        else:
            signal.signal(signal.SIGUSR2, lambda *_: rank.note("signalled"))
            npu.watch_steps(lambda step: rank.note("calls") if step == Step.ANNOUNCE else None)
        rows = npu.dispatch(*given)
        assert (rows.ticket.epoch, rows.ticket.total) == (1, int(rows.counts.sum()))
        scale_rows(rows)
        assert torch.equal(npu.combine(rows.out, rows).cpu(), expected)


def wait_for_a_slow_rank(npu_ranks: NpuRanks, seed: int) -> None:
    """A wait looks at signals from time to time: the second one finds it at that."""
    pool = npu_ranks.fresh(2, meet_late, seed=seed)
    pool.await_notes("calls", [0])
    for _ in range(2):
        pool.signal(0, signal.SIGUSR2)
        pool.await_notes("signalled", [0])
    pool.release(1)
    pool.collect()


def test_a_wait_outlasts_its_looks_at_signals(npu_ranks):
    wait_for_a_slow_rank(npu_ranks, emulated.SEED_WHEN_AWAITED)


def run_in_rounds(rank: Rank) -> list[int]:
    """A prefill whose rows the window holds a few at a time."""
    device = device_of(rank)
    shape = {"num_experts": EXPERTS_PER_RANK * rank.size, "hidden": HIDDEN, "max_tokens": MAX_TOKENS, "topk": TOPK}
    parameters = exchange_parameters(ranks=rank.size, **shape)
    small = {"window_bytes": bytes_for_capacity(parameters, rank.size * TOPK * 2)}
    with open_exchange(rank, torch.device("cpu"), **small) as host, open_exchange(rank, device, **small) as npu:
        for turn in range(2):
            batch = batch_of(rank, turn, MAX_TOKENS - 3 * rank.rank)
            expected = host.run(*batch, scale_rows, phase="prefill")
            assert torch.equal(npu.run(*batch.to(device), scale_rows, phase="prefill").cpu(), expected), turn
        return [counts.rounds for counts in npu.observation.phases.values()]


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_rounds_of_a_prefill_give_the_bits_of_the_host(npu_ranks, seed):
    for _, rounds in npu_ranks.run(2, run_in_rounds, seed=seed):
        assert rounds > 2
