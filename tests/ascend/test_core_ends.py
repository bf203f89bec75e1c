"""Core 0 waits for the ends of the other cores, no longer than a wait may take, and tells the worst finding of all."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sglang_ascend_moe.native.codes import Result

from .host_model import MODEL_SOURCES, compile_source, link

SOURCE = Path(__file__).with_name("core_ends.cpp")
RANK = 3
STAMP = 7 << 16 | 2
NO_CORE = 2**32 - 1
MINUTE, MOMENT = 60 * 50_000_000, 50_000
"""Of 50 cycles a microsecond."""

u32, u64 = ctypes.c_uint32, ctypes.c_uint64
Finding = tuple[Result, int]
"""A result, and who is named for it."""
WELL = (Result.OK, 0)


class _CoreEnds(ctypes.Structure):
    _fields_ = [
        ("results", ctypes.c_void_p), ("culprits", ctypes.c_void_p),
        ("stamp", u64), ("left", u64), ("timeout_cycles", u64),
        ("cores", u32), ("silent", u32), ("rank", u32), ("result", u32), ("culprit", u32),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def end_cores(tmp_path_factory: pytest.TempPathFactory, objects) -> Callable[..., Finding]:
    folder = tmp_path_factory.mktemp("core-ends")
    model = [path for path in objects.others if path.stem in {source.stem for source in MODEL_SOURCES}]
    library = ctypes.CDLL(str(link([compile_source(SOURCE, folder / "core_ends.o"), *model], folder / "core_ends.so")))
    library.end_cores.restype = ctypes.c_char_p

    def end(
        findings: Sequence[Finding], *, left: int = 0, silent: int = NO_CORE, timeout_cycles: int = MINUTE
    ) -> Finding:
        """What core 0 tells of cores with these findings."""
        results, culprits = ((u32 * len(findings))(*column) for column in zip(*findings, strict=True))
        given = _CoreEnds(
            ctypes.addressof(results), ctypes.addressof(culprits),
            STAMP, left, timeout_cycles, len(findings), silent, RANK, 99, 99,
        )  # fmt: skip
        assert library.end_cores(ctypes.byref(given)) == b""
        return Result(given.result), given.culprit

    return end


@pytest.mark.parametrize("cores", [1, 2, 48])
def test_cores_that_end_well_end_well_together(end_cores, cores):
    assert end_cores([WELL] * cores) == WELL


@pytest.mark.parametrize("core", [0, 1, 47])
def test_what_one_core_found_is_told(end_cores, core):
    found = (Result.PEER_LOST, 5)
    assert end_cores([*[WELL] * core, found, *[WELL] * (47 - core)]) == found


def test_of_faults_alike_that_of_the_lowest_rank_is_told(end_cores):
    lost = [(Result.PEER_LOST, culprit) for culprit in (6, 4, 2, 5)]
    assert end_cores([WELL, *lost]) == (Result.PEER_LOST, 2)


@pytest.mark.parametrize("left", [0, STAMP - 1, ~(STAMP - 1) % 2**64], ids=["nothing", "an-end", "a-fault"])
def test_a_core_that_does_not_end_is_waited_for_in_vain(end_cores, left):
    """What an earlier launch left is no end."""
    found = end_cores([WELL] * 4, silent=2, left=left, timeout_cycles=MOMENT)
    assert found == (Result.PEER_TIMEOUT, RANK)
