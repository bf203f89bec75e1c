"""How processes come to an emulated NPU, and device and operators together."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.npu import emulated
from tests.npu.conftest import open_process
from tests.npu.device.library import native

LATE = emulated.SEED_WHEN_AWAITED
PROGRAM = """
import multiprocessing as processes, sys

def say():
    import torch
    import torch_npu
    from sgl_kernel_npu.norm.l1_norm import l1_norm
    print(torch_npu.npu is torch.npu, torch.npu.mem_get_info()[1], l1_norm(torch.ones(1, 4, device="npu")).tolist())

if __name__ == "__main__":
    say()
    child = processes.get_context("spawn").Process(target=say)
    child.start()
    child.join()
"""


def test_every_process_with_the_environment_has_an_emulated_npu(device_library: Path, tmp_path: Path):
    (tmp_path / "program.py").write_text(PROGRAM)
    settings = emulated.Settings(str(device_library), memory_bytes=1 << 20)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, **emulated.environment(tmp_path, settings)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.splitlines() == [f"True {1 << 20} [[0.25, 0.25, 0.25, 0.25]]"] * 2, done.stderr


FORKING = """
import os, sys
from tests.npu import emulated
emulated.install(emulated.Settings(sys.argv[1], memory_bytes=1 << 20))
import torch
{before}
child = os.fork()
if child == 0:
    print(torch.npu._is_in_bad_fork(), torch.npu.current_device(), flush=True)
    torch.npu.set_device(1)
    print(torch.ones(2, device="npu").sum().item() if not torch.npu._is_in_bad_fork() else "-", flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.parametrize(
    ("before", "said"),
    [("torch.npu.mem_get_info()", ["False 0", "2.0"]), ("torch.ones(2, device='npu')", ["True 0", "-"])],
    ids=["memory was asked for", "the die was used"],
)
def test_a_forked_process_has_a_die_of_its_own_unless_its_parent_has_used_one(
    device_library: Path, before: str, said: list[str]
):
    command = [sys.executable, "-c", FORKING.format(before=before), str(device_library)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, check=True
    )
    assert done.stdout.splitlines() == said


def write_latent_keys() -> tuple[list[bool], list[float], list[float]]:
    keys, latent = torch.zeros(2, 4, 1, 2, device="npu"), torch.zeros(2, 4, 1, 4, device="npu")
    rows = torch.ones(1, 1, 1, 6, device="npu")
    cosine, sine = torch.ones(1, 1, 1, 2, device="npu"), torch.zeros(1, 1, 1, 2, device="npu")
    slots = torch.tensor([5], device="npu")
    results = torch.ops.npu.npu_kv_rmsnorm_rope_cache(
        rows, torch.ones(4, device="npu"), cosine, sine, slots, keys, latent, epsilon=0.0, cache_mode="PA_BNSD"
    )
    same = [results[0] is keys, results[1] is latent]
    return same, keys.flatten(0, 2)[5].tolist(), latent.flatten(0, 2)[5].tolist()


def test_results_that_are_arguments_are_the_arguments_whatever_the_schema_says(on_device: Callable[..., Any]):
    assert on_device(write_latent_keys, seed=LATE) == ([True, True], [1.0] * 2, [1.0] * 4)


def waits_of_allocations_beside_memory_in_use() -> int:
    side = torch.npu.Stream()
    small = torch.ones(1000, device="npu")
    side.wait_stream(torch.npu.current_stream())
    with torch.npu.stream(side):
        small.add_(1)
    small.record_stream(side)
    before = native().counters().get("host synchronisation", (0, 0))[0]
    del small
    torch.empty(1 << 20, dtype=torch.uint8, device="npu")
    return native().counters().get("host synchronisation", (0, 0))[0] - before


def test_memory_that_another_stream_still_uses_keeps_nothing_but_itself(on_device: Callable[..., Any]):
    assert on_device(waits_of_allocations_beside_memory_in_use, seed=LATE) == 0


def names_of_cuda() -> bool:
    from torch_npu.contrib import transfer_to_npu

    with torch.npu.stream(torch.npu.Stream()):
        same = torch.cuda.current_stream() == torch.npu.current_stream()
    return same and torch.cuda.Event is torch.npu.Event and transfer_to_npu.__name__.endswith("transfer_to_npu")


def test_names_of_cuda_lead_to_the_npu_once_they_are_transferred(device_library: Path):
    with open_process(device_library) as process:
        assert process.submit(names_of_cuda).result(timeout=120)
