"""The Ascend kernels on the host model, as a library with the C ABI of the host kernels."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.native.library import native_layout, use_library
from sglang_ascend_moe.native.session import NativeSession
from sglang_ascend_moe.windows.layout import WindowLayout
from tests.exchange.pool import Program, Rank

REPOSITORY = Path(__file__).resolve().parents[2]
KERNELS = REPOSITORY / "kernels"
FOLDERS = ("include", "host", "ascend", "ascend/host_model")
KERNEL_SOURCES = sorted((KERNELS / "ascend").glob("*.cpp"))
HOST_MODEL = KERNELS / "ascend" / "host_model"
LIBRARY_SOURCES = [HOST_MODEL / f"{name}.cpp" for name in ("exchange_library", "modelled_exchange")]
MODEL_SOURCES = sorted({*HOST_MODEL.glob("*.cpp")} - {*LIBRARY_SOURCES})
# What the exchange does beside moving rows is host code on an NPU as well.
HOST_SOURCES = sorted(
    path
    for path in (KERNELS / "host").glob("*.cpp")
    if path.stem not in ("dispatch", "combine") and not path.stem.startswith("bench_")
)
FLAGS = ("-std=c++20", "-O1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden")


class ModelViolated(AssertionError):
    """A kernel did what a device would punish; the text says what."""


class CoreCosts(NamedTuple):
    """What the last kernel cost one core: bytes, instructions, barriers; on a clock also ns."""

    loaded_row_bytes: int
    stored_row_bytes: int
    loaded_other_bytes: int
    stored_other_bytes: int
    loads: int
    stores: int
    vector_instructions: int
    pipe_barriers: int
    core_barriers: int
    ub_high_water: int
    ub_buffers: int
    scalar_accesses: int
    ended: int
    busy_scalar: int
    busy_vector: int
    busy_loads: int
    busy_stores: int


class _CoreCosts(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in CoreCosts._fields]


def costs_array(cores: int) -> ctypes.Array:
    """Room for the costs of so many cores, which the library writes."""
    return (_CoreCosts * cores)()


def core_costs(costs: ctypes.Array) -> list[CoreCosts]:
    return [CoreCosts(*(getattr(one, name) for name in CoreCosts._fields)) for one in costs]


def compile_source(
    source: Path, target: Path, *, strict: bool = True, include: Sequence[Path] = (), defined: Sequence[str] = ()
) -> Path:
    """Compiles one source, whose own folder comes first when headers are looked for; `strict`: warnings are errors;
    `include`: further folders with headers; `defined`: macros, as NAME=VALUE."""
    compiler = os.environ.get("CXX", "g++").split()
    folders = [f"-I{folder}" for folder in (*include, *(KERNELS / folder for folder in FOLDERS))]
    warnings = ("-Wall", "-Wextra", "-Werror") if strict else ("-w",)
    macros = [f"-D{macro}" for macro in defined]
    command = [*compiler, *FLAGS, *warnings, *folders, *macros, "-c", str(source), "-o", str(target)]
    subprocess.run(command, check=True, timeout=240)
    return target


def link(objects: Sequence[Path], library: Path) -> Path:
    compiler = os.environ.get("CXX", "g++").split()
    subprocess.run([*compiler, "-shared", "-pthread", *map(str, objects), "-o", str(library)], check=True, timeout=120)
    return library


def build_objects(sources: Sequence[Path], folder: Path, include: Sequence[Path] = ()) -> list[Path]:
    def build(source: Path) -> Path:
        return compile_source(source, folder / f"{source.stem}.o", include=include)

    with ThreadPoolExecutor(2) as compilers:
        return list(compilers.map(build, sources))


class Model:
    """The model inside a loaded library."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)
        self._library.ascend_model_use_cores.argtypes = [ctypes.c_uint32]
        self._library.ascend_model_violation.restype = ctypes.c_char_p
        self._library.ascend_model_costs.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        self._library.ascend_model_costs.restype = ctypes.c_uint32

    def use_cores(self, cores: int) -> None:
        self._library.ascend_model_use_cores(cores)

    def buffers(self, layout: WindowLayout) -> tuple[int, int]:
        """Bytes of the unified buffer that dispatch and combine are said to need."""
        needed = (ctypes.c_uint64 * 2)()
        self._library.ascend_model_buffers(bytes(native_layout(layout)), needed)
        return needed[0], needed[1]

    def violation(self) -> str:
        """The first rule that a kernel of this process broke, or an empty text."""
        return str(self._library.ascend_model_violation().decode())

    def costs(self) -> list[CoreCosts]:
        """Of the last kernel, by core."""
        cores = self._library.ascend_model_costs(None, 0)
        costs = costs_array(cores)
        self._library.ascend_model_costs(costs, cores)
        return core_costs(costs)


@contextmanager
def on_model(path: str, cores: int) -> Iterator[Model]:
    """Exchanges opened inside run the Ascend kernels on `cores` modelled cores. Raises `ModelViolated`."""
    model = Model(path)
    model.use_cores(cores)
    use_library(path)
    NativeSession.packs_scales = True
    try:
        yield model
    finally:
        use_library(None)
        NativeSession.packs_scales = False
        if text := model.violation():
            raise ModelViolated(text)


def on_ascend(rank: Rank, path: str, cores: int, program: Program, *arguments: object) -> object:
    """A program for ranks, with the Ascend kernels under it on every rank."""
    with on_model(path, cores):
        return program(rank, *arguments)


def on_mixed(rank: Rank, path: str, cores: int, program: Program, *arguments: object) -> object:
    """The same with the Ascend kernels on odd ranks and the host kernels on even ones."""
    if rank.rank % 2 == 0:
        return program(rank, *arguments)
    return on_ascend(rank, path, cores, program, *arguments)
