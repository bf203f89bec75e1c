from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.npu import emulated
from tests.npu.device.library import native

MEMORY_BYTES = 64 << 20


def open_process(library: Path, index: int = 0) -> ProcessPoolExecutor:
    """A process whose `npu` is the emulated one: torch has one such device for good."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (library, index))


def _begin(library: Path, index: int) -> None:
    torch.set_num_threads(1)
    # Torch makes a folder of its compiler as soon as it imports it.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(library.parent / "inductor")
    emulated.install(emulated.Settings(str(library), MEMORY_BYTES))
    torch.npu.set_device(index)


def run_with_seed(seed: int, program: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    native().set_seed(seed)
    try:
        return program(*arguments)
    finally:
        native().set_seed(0)
        native().drain()
        native().take_failure()


@pytest.fixture(scope="session")
def on_device(device_library: Path) -> Iterator[Callable[..., Any]]:
    """Runs `program(*arguments)` in a process with an emulated NPU, whose work is as late as the seed says."""
    with open_process(device_library) as process:

        def run(program: Callable[..., Any], *arguments: Any, seed: int = emulated.SEED_AT_ONCE) -> Any:
            return process.submit(run_with_seed, seed, program, arguments).result(timeout=120)

        yield run
