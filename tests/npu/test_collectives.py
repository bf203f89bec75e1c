"""Collectives of the emulated NPU on two ranks: the results of gloo, in the order of streams, and in graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.npu import emulated
from tests.npu.conftest import open_process, run_with_seed
from tests.npu.device.library import native

RANKS = 2
SECONDS = 120
OnRanks = Callable[..., list[Any]]


def rows(device: str, dtype: torch.dtype, count: int = 8) -> torch.Tensor:
    """Other values on each rank."""
    return (torch.arange(count) * (dist.get_rank() + 1)).to(device, dtype).view(count // 2, 2)


def broadcast(x: torch.Tensor, group: Any) -> torch.Tensor:
    dist.broadcast(x, 1, group)
    return x


def all_reduce(x: torch.Tensor, group: Any) -> torch.Tensor:
    dist.all_reduce(x, group=group)
    return x


def all_reduce_maximum(x: torch.Tensor, group: Any) -> torch.Tensor:
    dist.all_reduce(x, dist.ReduceOp.MAX, group)
    return x


def reduce(x: torch.Tensor, group: Any) -> torch.Tensor:
    dist.reduce(x, 0, group=group)
    return x if dist.get_rank() == 0 else x[:0]


def all_gather(x: torch.Tensor, group: Any) -> torch.Tensor:
    parts = [torch.empty_like(x) for _ in range(RANKS)]
    dist.all_gather(parts, x, group)
    return torch.stack(parts)


def all_gather_into_tensor(x: torch.Tensor, group: Any) -> torch.Tensor:
    whole = x.new_empty((RANKS * len(x), *x.shape[1:]))
    dist.all_gather_into_tensor(whole, x, group)
    return whole


def gather(x: torch.Tensor, group: Any) -> torch.Tensor:
    parts = [torch.empty_like(x) for _ in range(RANKS)] if dist.get_rank() == 1 else None
    dist.gather(x, parts, 1, group)
    return torch.stack(parts) if parts else x[:0]


def scatter(x: torch.Tensor, group: Any) -> torch.Tensor:
    part = torch.empty_like(x[:2])
    dist.scatter(part, list(x.split(2)) if dist.get_rank() == 0 else None, 0, group)
    return part


def reduce_scatter(x: torch.Tensor, group: Any) -> torch.Tensor:
    part = torch.empty_like(x[:2])
    dist.reduce_scatter(part, list(x.split(2)), group=group)
    return part


def reduce_scatter_tensor(x: torch.Tensor, group: Any) -> torch.Tensor:
    part = torch.empty_like(x[:2])
    dist.reduce_scatter_tensor(part, x, group=group)
    return part


def all_to_all_single(x: torch.Tensor, group: Any) -> torch.Tensor:
    sent = [1, 3] if dist.get_rank() == 0 else [2, 2]
    received = [1, 2] if dist.get_rank() == 0 else [3, 2]
    out = x.new_empty((sum(received), *x.shape[1:]))
    dist.all_to_all_single(out, x, received, sent, group=group)
    return out


def send_and_receive(x: torch.Tensor, group: Any) -> torch.Tensor:
    if dist.get_rank() == 0:
        dist.send(x, 1, group)
    else:
        dist.recv(x, 0, group)
    return x


def receive_and_send_in_a_batch(x: torch.Tensor, group: Any) -> torch.Tensor:
    """Each rank queues what it receives before what it sends."""
    other, received = 1 - dist.get_rank(), torch.empty_like(x)
    operations = [dist.P2POp(dist.irecv, received, other, group), dist.P2POp(dist.isend, x, other, group)]
    for running in dist.batch_isend_irecv(operations):
        running.wait()
    return received


COLLECTIVES = [
    broadcast, all_reduce, all_reduce_maximum, reduce, all_gather, all_gather_into_tensor, gather, scatter,
    reduce_scatter, reduce_scatter_tensor, all_to_all_single, send_and_receive,
    receive_and_send_in_a_batch,
]  # fmt: skip


def join(rank: int, store: str) -> None:
    """Makes this process a rank, with a group of each backend."""
    dist.init_process_group("cpu:gloo,npu:hccl", init_method=f"file://{store}", rank=rank, world_size=RANKS)


@pytest.fixture(scope="module")
def on_ranks(device_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnRanks]:
    """Runs `program(*arguments)` on two ranks, each with a die of its own; returns what each returns."""
    store = str(tmp_path_factory.mktemp("store") / "store")
    ranks = [open_process(device_library, index) for index in range(RANKS)]

    def run(program: Callable[..., Any], *arguments: Any, seed: int = emulated.SEED_AT_ONCE) -> list[Any]:
        running = [rank.submit(run_with_seed, seed, program, arguments) for rank in ranks]
        return [one.result(SECONDS) for one in running]

    try:
        _each(ranks, join, store)
        yield run
    finally:
        for rank in ranks:
            rank.shutdown()


def _each(ranks: list[ProcessPoolExecutor], program: Callable[..., Any], *arguments: Any) -> None:
    for running in [rank.submit(program, index, *arguments) for index, rank in enumerate(ranks)]:
        running.result(SECONDS)


def on_both_devices(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    collective = next(one for one in COLLECTIVES if one.__name__ == name)
    on_npu = collective(rows("npu", dtype), None)
    return on_npu.device.type, torch.equal(on_npu.cpu(), collective(rows("cpu", dtype), None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int64], ids=["bfloat16", "float32", "int64"])
@pytest.mark.parametrize("name", [collective.__name__ for collective in COLLECTIVES])
def test_results_are_those_of_gloo(on_ranks: OnRanks, name: str, dtype: torch.dtype):
    assert on_ranks(on_both_devices, name, dtype) == [("npu", True)] * RANKS


def sum_between_others() -> tuple[list[float], int]:
    x = torch.full((4,), float(dist.get_rank()), device="npu")
    before = native().counters().get("host synchronisation", (0, 0))[0]
    for _ in range(3):
        x += 1
        dist.all_reduce(x)
        x *= 2
    waits = native().counters().get("host synchronisation", (0, 0))[0] - before
    return x.tolist(), waits


@pytest.mark.parametrize("seed", [emulated.SEED_AT_ONCE, emulated.SEED_WHEN_AWAITED, *range(1, 9)])
def test_a_collective_comes_between_what_is_put_on_the_stream_before_and_after_and_the_host_does_not_wait(
    on_ranks: OnRanks, seed: int
):
    # (1 + 2) * 2 = 6, (7 + 7) * 2 = 28, (29 + 29) * 2 = 116
    assert on_ranks(sum_between_others, seed=seed) == [([116.0] * 4, 0)] * RANKS


def use_without_a_wait() -> tuple[list[float], list[float]]:
    x = torch.ones(2, device="npu")
    torch.npu.synchronize()
    reduction = dist.all_reduce(x, async_op=True)
    early = x.clone().tolist()
    reduction.wait()
    return early, x.tolist()


def test_who_does_not_wait_for_a_collective_reads_old_values(on_ranks: OnRanks):
    assert on_ranks(use_without_a_wait, seed=emulated.SEED_WHEN_AWAITED) == [([1.0, 1.0], [2.0, 2.0])] * RANKS


def allocate_after_dropping_an_operand() -> bool:
    x = torch.ones(1000, device="npu")
    address = x.data_ptr()
    reduction = dist.all_reduce(x, async_op=True)
    del x
    reused = torch.empty(1000, device="npu").data_ptr() == address
    reduction.wait()
    return reused


def test_memory_of_a_running_collective_is_not_given_to_others(on_ranks: OnRanks):
    assert on_ranks(allocate_after_dropping_an_operand, seed=emulated.SEED_WHEN_AWAITED) == [False] * RANKS


def replay_sums() -> list[list[float]]:
    x = torch.zeros(2, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        y = x * 2
        dist.all_reduce(y)
        y += 1
    results = []
    for value in range(3):
        x.fill_(value + 10 * dist.get_rank())
        graph.replay()
        results.append(y.tolist())
    return results


@pytest.mark.parametrize("seed", [emulated.SEED_AT_ONCE, emulated.SEED_WHEN_AWAITED, 1, 2, 3])
def test_a_graph_holds_collectives_which_run_at_every_replay(on_ranks: OnRanks, seed: int):
    assert on_ranks(replay_sums, seed=seed) == [[[21.0] * 2, [25.0] * 2, [29.0] * 2]] * RANKS


def sum_beside_a_replay(turns: int) -> bool:
    """A replay reduces many elements, and nothing waits for it when another stream reduces few."""
    large, small = torch.zeros(1 << 16, device="npu"), torch.zeros(2, device="npu")
    graph, beside = torch.npu.NPUGraph(), torch.npu.Stream()
    with torch.npu.graph(graph):
        dist.all_reduce(large)
    large.fill_(1)
    torch.npu.synchronize()
    for _ in range(turns):
        graph.replay()
        with torch.npu.stream(beside):
            small.fill_(1)
            dist.all_reduce(small)
    torch.npu.synchronize()
    return bool((large == RANKS**turns).all()) and small.tolist() == [RANKS] * 2


@pytest.mark.parametrize("seed", [emulated.SEED_AT_ONCE, emulated.SEED_WHEN_AWAITED, 1, 2, 3, 4, 5, 6])
def test_collectives_of_a_group_run_in_the_order_of_their_launches(on_ranks: OnRanks, seed: int):
    assert on_ranks(sum_beside_a_replay, 6, seed=seed) == [True] * RANKS


def give_a_tensor_of_the_host() -> str:
    with pytest.raises(RuntimeError) as raised:
        dist.distributed_c10d._get_default_group()._get_backend(torch.device("npu")).allreduce([torch.ones(1)])
    return str(raised.value).splitlines()[0]


def test_a_tensor_of_the_host_is_refused(on_ranks: OnRanks):
    assert on_ranks(give_a_tensor_of_the_host) == ["hccl has no collective for a tensor of cpu"] * RANKS
