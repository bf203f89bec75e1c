from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ascend.conftest import AscendPools
from tests.exchange.pool import Pool, Program, Rank
from tests.npu import emulated
from tests.npu.cann import install_cann
from tests.npu.device.build import LIBRARY
from tests.npu.device.library import NAME, native

MEMORY_BYTES = 128 << 20


def begin(libraries: Path, index: int) -> None:
    """The emulated NPU `index` is that of this process from now on."""
    if NAME in sys.modules:
        return
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(libraries / "inductor")
    emulated.install(emulated.Settings(str(libraries / LIBRARY), MEMORY_BYTES, exchange_libraries=str(libraries)))
    torch.npu.set_device(index)


def on_npu(rank: Rank, libraries: Path, seed: int, program: Program, *arguments: object) -> object:
    """A program of ranks with one emulated NPU each, whose work is as late as the seed says.

    Raises AssertionError for what the kernels did wrong, or what failed on a stream and nobody noticed.
    """
    # None has the device that a thread begins with.
    begin(libraries, rank.rank + 1)
    native().set_seed(seed)
    try:
        result = program(rank, *arguments)
    finally:
        native().set_seed(emulated.SEED_AT_ONCE)
        native().drain()
        failure = native().take_failure() or install_cann.violation(libraries)
    assert failure == ""
    return result


class NpuRanks:
    """Ranks with an emulated NPU each. Those of `run` outlive the test, those of `fresh` may be harmed."""

    def __init__(self, libraries: Path) -> None:
        self._libraries = libraries
        self._pools = AscendPools()
        self._fresh: list[Pool] = []

    def run(
        self,
        ranks: int,
        program: Program,
        *arguments: object,
        seed: int = emulated.SEED_AT_ONCE,
        deadline_s: float = 60,
    ) -> list:
        """The results of a program, in rank order."""
        return self._pools.run(ranks, *self._order(seed, program, arguments), deadline_s=deadline_s)

    def fresh(self, ranks: int, program: Program, *arguments: object, seed: int | None) -> Pool:
        """Ranks that have begun a program; without an NPU where there is no seed."""
        self._fresh.append(Pool(ranks))
        order = (program, *arguments) if seed is None else self._order(seed, program, arguments)
        self._fresh[-1].start(*order)
        return self._fresh[-1]

    def _order(self, seed: int, program: Program, arguments: tuple[object, ...]) -> tuple[Any, ...]:
        return on_npu, self._libraries, seed, program, *arguments

    def close_fresh(self) -> None:
        while self._fresh:
            self._fresh.pop().close()

    def close(self) -> None:
        self.close_fresh()
        self._pools.close()


@pytest.fixture(scope="session")
def session_ranks(libraries: Path) -> Iterator[NpuRanks]:
    ranks = NpuRanks(libraries)
    yield ranks
    ranks.close()


@pytest.fixture
def npu_ranks(session_ranks: NpuRanks) -> Iterator[NpuRanks]:
    """Ranks with an emulated NPU each."""
    yield session_ranks
    session_ranks.close_fresh()
