"""Exchanges in the graphs of an emulated NPU: captured once, replayed with other tokens, beside calls of other ranks.

No NPU has run this.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.exchange.control.trace_file import FILE_SUFFIX, read_trace
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from tests.exchange.control.test_trace_file import CALLED
from tests.exchange.pool import Rank
from tests.npu.cann.conftest import NpuRanks
from tests.npu.cann.test_exchange_on_npu import (
    EXPERTS_PER_RANK,
    SEEDS,
    Batch,
    batch_of,
    device_of,
    open_exchange,
    scale_rows,
)
from tests.npu.device.library import native

pytestmark = pytest.mark.nightly

TOKENS = 8


class Captured:
    """A layer in a graph: `batch` and `out` are the tensors that it works on."""

    def __init__(self, exchange: Exchange, batch: Batch) -> None:
        self.batch = batch
        self.out = torch.empty_like(batch.x)
        self.graph = torch.npu.NPUGraph()
        # Ranks that replay have as many tokens each.
        most = exchange.parameters.ranks * len(batch.x)
        prepared = exchange.prepare(*batch, scale_rows, self.out, most_tokens=most)
        with torch.npu.graph(self.graph):
            prepared()

    def load(self, batch: Batch) -> None:
        for target, source in zip(self.batch, batch, strict=True):
            target.copy_(source)


def warm(exchange: Exchange, rank: Rank) -> None:
    """Every window has been used before one is captured, as SGLang's runner sees to it."""
    exchange.run(*batch_of(rank, 0, 1).to(device_of(rank)), scale_rows)


def replay_beside_calls(rank: Rank, turns: int, options: dict[str, Any]) -> None:
    device = device_of(rank)
    with open_exchange(rank, torch.device("cpu"), **options) as host, open_exchange(rank, device, **options) as npu:
        warm(npu, rank)
        captured = Captured(npu, batch_of(rank, 0, TOKENS).to(device))
        for turn in range(turns):
            batch = batch_of(rank, turn, TOKENS)
            expected = host.run(*batch, scale_rows)
            if (turn + rank.rank) % 3 == 0:
                found = npu.run(*batch.to(device), scale_rows)
            else:
                captured.load(batch)
                captured.graph.replay()
                npu.check_replays()
                found = captured.out
            assert torch.equal(found.cpu(), expected), turn


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_replays_give_the_bits_of_the_host_beside_calls_of_other_ranks(npu_ranks, seed):
    npu_ranks.run(2, replay_beside_calls, 7, {}, seed=seed)


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_quantised_replays_give_the_bits_of_the_host(npu_ranks, seed):
    npu_ranks.run(2, replay_beside_calls, 4, {"quant": "int8"}, seed=seed)


REPLAY = {
    "moe_dispatch": 1, "moe_combine": 1, "copy from the host": 0, "copy to the host": 2, "host synchronisation": 0,
    "allocation": 0, "aten::fill_.Scalar": 0,
}  # fmt: skip
"""Calls of a replay of one layer, and of fetching what it found."""


def count_work(rank: Rank) -> dict[str, int]:
    """What one replay, and fetching what it found, put on the stream or waited for."""
    with open_exchange(rank, device_of(rank)) as npu:
        warm(npu, rank)
        captured = Captured(npu, batch_of(rank, 0, TOKENS).to(device_of(rank)))
        torch.npu.synchronize()
        since = native().counters()
        captured.graph.replay()
        fetched = npu.fetch_verdicts()
        now = native().counters()
        torch.npu.synchronize()
        npu.raise_fetched(fetched)
    return {name: now.get(name, (0, 0))[0] - since.get(name, (0, 0))[0] for name in REPLAY}


def test_a_replay_is_two_launches_waits_for_nothing_and_allocates_nothing(npu_ranks):
    assert npu_ranks.run(2, count_work) == [REPLAY] * 2


def several_buckets_in_one_pool(rank: Rank) -> None:
    """As a server has them: graphs of several batch sizes, two layers in each, replayed in any order."""
    device, layers = device_of(rank), 2
    with open_exchange(rank, torch.device("cpu")) as host, open_exchange(rank, device) as npu:
        warm(npu, rank)
        pool, graphs = torch.npu.graph_pool_handle(), {}
        for tokens in (1, 4, 8):
            batch = batch_of(rank, 0, tokens).to(device)
            outs = [torch.empty_like(batch.x) for _ in range(layers)]
            steps = [npu.prepare(*batch, scale_rows, outs[0])]
            steps.append(npu.prepare(outs[0], batch.ids, batch.weights, scale_rows, outs[1]))
            graph = torch.npu.NPUGraph()
            with torch.npu.graph(graph, pool=pool):
                for step in steps:
                    step()
            graphs[tokens] = graph, batch, outs[-1]
        for turn, tokens in enumerate((8, 1, 4, 4, 8, 1)):
            # The ranks replay graphs of different sizes.
            tokens = list(graphs)[(list(graphs).index(tokens) + rank.rank) % len(graphs)]
            graph, batch, out = graphs[tokens]
            given = batch_of(rank, turn, tokens)
            for target, source in zip(batch, given, strict=True):
                target.copy_(source)
            graph.replay()
            npu.check_replays()
            first = host.run(*given, scale_rows)
            assert torch.equal(out.cpu(), host.run(first, given.ids, given.weights, scale_rows)), turn


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_ranks_replay_graphs_of_different_sizes(npu_ranks, seed):
    npu_ranks.run(2, several_buckets_in_one_pool, seed=seed)


def fetch_behind_another_stream(exchange: Exchange, results: torch.npu.Stream) -> None:
    """As SGLang copies the tokens of a step: on a stream of results, behind that of the step."""
    results.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(results):
        place = exchange.fetch_verdicts()
        fetched = torch.npu.Event()
        fetched.record()
    fetched.synchronize()
    exchange.raise_fetched(place)


def refuse_in_a_replay(rank: Rank, fetches: bool) -> list[str]:
    device = device_of(rank)
    # What a graph finds in memory that nobody has written is not zero.
    torch.full((1 << 20,), 0x7F7F7F7F, device=device, dtype=torch.int32)
    said = []
    own_stream = torch.npu.stream(torch.npu.Stream())
    with own_stream, open_exchange(rank, torch.device("cpu")) as host, open_exchange(rank, device) as npu:
        warm(npu, rank)
        captured = Captured(npu, batch_of(rank, 0, TOKENS).to(device))
        results = torch.npu.Stream()

        def check() -> None:
            if fetches:
                fetch_behind_another_stream(npu, results)
            else:
                npu.check_replays()

        for turn in range(3):
            batch = batch_of(rank, turn, TOKENS)
            expected = host.run(*batch, scale_rows)
            captured.load(batch)
            if rank.rank == 1 and turn % 2 == 0:
                captured.batch.ids[3, 1] = EXPERTS_PER_RANK * rank.size
            captured.graph.replay()
            if turn % 2 == 0:
                with pytest.raises(InvalidInput) as refused:
                    check()
                said.append(str(refused.value))
            check()
            if turn % 2:
                assert torch.equal(captured.out.cpu(), expected)
    return said


@pytest.mark.parametrize("fetches", [False, True], ids=["waiting", "fetching"])
@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_what_a_replay_refuses_is_raised_by_its_check_and_not_again(npu_ranks, seed, fetches):
    for rank, said in enumerate(npu_ranks.run(2, refuse_in_a_replay, fetches, seed=seed)):
        culprit = "this rank (1)" if rank == 1 else "rank 1"
        assert said == [f"{culprit}: expert id 6 is outside -1 .. 5 (num_experts=6)"] * 2


def trace_replays(rank: Rank, folder: str) -> tuple[list[int], list[int]]:
    """The epochs of two replays, the first of which is traced behind one that runs on another stream and is not; and
    those of their steps, as they are in the file before anything but a fetch has looked for them."""
    device = device_of(rank)
    with torch.npu.stream(torch.npu.Stream()), open_exchange(rank, device) as npu:
        warm(npu, rank)
        captured = Captured(npu, batch_of(rank, 0, TOKENS).to(device))
        results, other = torch.npu.Stream(), torch.npu.Stream()
        other.wait_stream(torch.npu.current_stream())
        with torch.npu.stream(other):
            captured.graph.replay()
        npu.trace(folder)
        begun = npu.epoch
        for _ in range(2):
            captured.graph.replay()
        fetch_behind_another_stream(npu, results)
        (path,) = Path(folder).glob(f"*-rank{rank.rank}{FILE_SUFFIX}")
        return [begun + 1, begun + 2], [event.epoch for event in read_trace(path).events]


def traced_epochs_are_right(ranks: NpuRanks, seed: int) -> None:
    """For ranks whose work is as late as the seed says."""
    with tempfile.TemporaryDirectory() as folder:
        for replayed, traced in ranks.run(2, trace_replays, folder, seed=seed, deadline_s=20):
            assert traced == [epoch for epoch in replayed for _ in CALLED]


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_steps_of_replays_are_fetched_with_what_they_found(npu_ranks, seed):
    traced_epochs_are_right(npu_ranks, seed)


def fail_in_a_capture(rank: Rank) -> None:
    """The others are told while the stream is captured, which lets nobody wait; then the session ends."""

    def experts(_rows: ExpertRows) -> None:
        raise ValueError("no experts")

    with open_exchange(rank, device_of(rank)) as npu:
        warm(npu, rank)
        batch = batch_of(rank, 0, TOKENS).to(device_of(rank))
        prepared = npu.prepare(*batch, experts, torch.empty_like(batch.x))
        with pytest.raises(ValueError, match="no experts"), torch.npu.graph(torch.npu.NPUGraph()):
            prepared()


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_a_session_whose_capture_failed_ends(npu_ranks, seed):
    npu_ranks.run(2, fail_in_a_capture, seed=seed)
