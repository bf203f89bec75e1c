"""Triton's kernels on the emulated NPU, as Triton's interpreter runs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.npu import emulated
from tests.npu.conftest import open_process, run_with_seed

SEEDS = {"at-once": emulated.SEED_AT_ONCE, "when-awaited": emulated.SEED_WHEN_AWAITED, "random": 1}


@pytest.fixture(scope="module")
def on_device(device_library: Path) -> Iterator[Callable[..., Any]]:
    """Runs `program(seed)` in a process whose kernels are interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        process: ProcessPoolExecutor = open_process(device_library)
        with process:
            yield lambda program, seed: process.submit(run_with_seed, seed, program, ()).result(timeout=120)


def add_rows() -> list[list[int]]:
    """A kernel between two operators, whose operands it is given as tensors and as a table of pointers."""
    from tests.npu.interpreted_kernels import add_where_pointers_lead

    rows = [torch.arange(4, device="npu") * 1, torch.arange(4, device="npu") * 10]
    table = torch.tensor([row.data_ptr() for row in rows], dtype=torch.uint64, device="npu")
    out = torch.empty(2, 4, dtype=torch.int64, device="npu")
    add_where_pointers_lead[lambda given: (len(given["out"]),)](
        table, out, added=torch.full((4,), 3, device="npu") * 2, width=4
    )
    return (out + 1).tolist()


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_a_kernel_runs_in_the_order_of_the_stream_on_pointers_too(on_device, seed):
    assert on_device(add_rows, seed) == [[7, 8, 9, 10], [7, 17, 27, 37]]


def replay_additions() -> list[list[int]]:
    from tests.npu.interpreted_kernels import add_where_pointers_lead

    row, added = torch.zeros(4, dtype=torch.int64, device="npu"), torch.zeros(4, dtype=torch.int64, device="npu")
    table = torch.tensor([row.data_ptr()], dtype=torch.uint64, device="npu")
    out = torch.empty(1, 4, dtype=torch.int64, device="npu")
    graph = torch.npu.NPUGraph()
    with torch.npu.graph(graph):
        add_where_pointers_lead[(1,)](table, out, added=added, width=4)
        out += 1
    results = []
    for value in range(3):
        row.fill_(value)
        added.fill_(10 * value)
        graph.replay()
        results.append(out[0].tolist())
    return results


@pytest.mark.parametrize("seed", SEEDS.values(), ids=SEEDS)
def test_a_captured_kernel_runs_at_every_replay(on_device, seed):
    assert on_device(replay_additions, seed) == [[1] * 4, [12] * 4, [23] * 4]
