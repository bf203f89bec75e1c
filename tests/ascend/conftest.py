from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.exchange.conftest import Pools
from tests.exchange.pool import Pool, Program
from tests.versions.npu_wheels import headers

from .host_model import (
    HOST_SOURCES,
    KERNEL_SOURCES,
    LIBRARY_SOURCES,
    MODEL_SOURCES,
    build_objects,
    compile_source,
    link,
    on_ascend,
)
from .modelled_time import Clock

MUTANT_DEADLINE_S = 4.0
"""For kernels that may wait for ever."""


class Objects(NamedTuple):
    """Compiled parts of the library, so that tests can exchange one."""

    kernels: list[Path]
    others: list[Path]


def compile_objects(folder: Path) -> Objects:
    compiled = build_objects([*KERNEL_SOURCES, *MODEL_SOURCES, *LIBRARY_SOURCES, *HOST_SOURCES], folder)
    return Objects(compiled[: len(KERNEL_SOURCES)], compiled[len(KERNEL_SOURCES) :])


def link_library(objects: Objects) -> str:
    target = objects.others[0].parent / "libascend_model.so"
    return str(link([*objects.kernels, *objects.others], target))


def delayed(objects: Objects, folder: Path, seed: int = 1) -> Objects:
    """The same with the model's delayed mode."""
    [source] = [path for path in MODEL_SOURCES if path.stem == "delay"]
    late = compile_source(source, folder / "delay.o", defined=[f"MODEL_DELAY={seed}"])
    return Objects(objects.kernels, [late, *(path for path in objects.others if path.stem != "delay")])


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Objects:
    return compile_objects(tmp_path_factory.mktemp("ascend-objects"))


@pytest.fixture(scope="session")
def delayed_library(objects: Objects, tmp_path_factory: pytest.TempPathFactory) -> str:
    """That of the library in which instructions take effect late."""
    return link_library(delayed(objects, tmp_path_factory.mktemp("delayed")))


@pytest.fixture(scope="session")
def library(objects: Objects, request: pytest.FixtureRequest) -> str:
    """The path of the library that runs the Ascend kernels on the model; with `--delayed` that of the other."""
    if request.config.getoption("--delayed"):
        return str(request.getfixturevalue("delayed_library"))
    return link_library(objects)


@pytest.fixture(scope="session")
def clock(library: str) -> Clock:
    """Modelled time, with the constants as they are."""
    return Clock(library)


@pytest.fixture(scope="session")
def device_library(objects: Objects, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of the library for Ascend devices, over stand-ins."""
    # Here, because it imports Objects of this module.
    from .device_library import build

    folder = tmp_path_factory.mktemp("ascend-device")
    return build(folder, headers("torch 2.14", request.config, folder / "headers"), objects)


class AscendPools(Pools):
    """Ranks that outlive the test, running programs over the Ascend kernels."""

    def __init__(self, deadline_s: float = 120.0) -> None:
        super().__init__()
        self._deadline_s = deadline_s

    def run(self, ranks: int, program: Program, *arguments: object, deadline_s: float | None = None) -> list:
        return super().run(ranks, program, *arguments, deadline_s=deadline_s or self._deadline_s)

    def run_on(self, ranks: int, library: str, cores: int, program: Program, *arguments: object) -> list:
        return self.run(ranks, on_ascend, library, cores, program, *arguments)


@pytest.fixture(scope="session")
def pools() -> Iterator[AscendPools]:
    pools = AscendPools()
    yield pools
    pools.close()


@pytest.fixture
def fresh_pool() -> Iterator[Callable[[int], Pool]]:
    """Makes pools for tests that harm their ranks; ends them after the test."""
    made: list[Pool] = []

    def make(ranks: int) -> Pool:
        made.append(Pool(ranks))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture(scope="session")
def mutant_pools() -> Iterator[AscendPools]:
    pools = AscendPools(MUTANT_DEADLINE_S)
    yield pools
    pools.close()
