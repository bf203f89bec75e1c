"""How long a step was held up, and by whom, as the clock of a launch counts it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import pytest

from sglang_ascend_moe.native.codes import Step

from .host_model import compile_source, link

SOURCE = Path(__file__).with_name("step_clock.cpp")
MOST = 2**32 - 1
NOBODY = -1


class Call(IntEnum):
    BEGIN = 0
    BEGIN_WAIT = 1
    WAIT_FOR = 2
    END_WAIT = 3


class _ClockCall(ctypes.Structure):
    _fields_ = [("cycle", ctypes.c_int64), ("call", ctypes.c_uint32), ("argument", ctypes.c_uint32)]


class _StepTimes(ctypes.Structure):
    _fields_ = [
        ("epoch", ctypes.c_uint64), ("began", ctypes.c_uint64 * 6), ("steps", ctypes.c_uint8 * 8),
        ("waited", ctypes.c_uint32 * 4), ("waited_for", ctypes.c_uint32 * 4), ("rest", ctypes.c_uint64 * 4),
    ]  # fmt: skip


Waits = list[tuple[int, int]]
"""Of each step cycles, and the rank that came last."""


@pytest.fixture(scope="module")
def waits_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Waits]:
    folder = tmp_path_factory.mktemp("step-clock")
    library = ctypes.CDLL(str(link([compile_source(SOURCE, folder / "step_clock.o")], folder / "step_clock.so")))

    def run(*calls: tuple[int, Call, int] | tuple[int, Call]) -> Waits:
        """The waits of the first two steps."""
        given, times = (_ClockCall * len(calls))(*(_ClockCall(*call) for call in calls)), _StepTimes()
        library.run_step_clock(given, len(calls), ctypes.byref(times))
        return [(times.waited[step], times.waited_for[step] - 1) for step in range(2)]

    return run


def test_a_wait_is_counted_to_its_end_and_names_who_came_last(waits_of):
    assert waits_of(
        (10, Call.BEGIN, Step.COUNTS), (20, Call.BEGIN_WAIT), (30, Call.WAIT_FOR, 1), (40, Call.WAIT_FOR, 2),
        (50, Call.END_WAIT), (90, Call.BEGIN, Step.PLACE), (99, Call.BEGIN, Step.NONE),
    ) == [(30, 2), (0, NOBODY)]  # fmt: skip


def test_a_wait_that_does_not_end_is_counted_to_the_end_of_its_step(waits_of):
    assert waits_of(
        (10, Call.BEGIN, Step.ARRIVALS), (20, Call.BEGIN_WAIT), (30, Call.WAIT_FOR, 3), (60, Call.BEGIN, Step.NONE),
    ) == [(40, 3), (0, NOBODY)]  # fmt: skip


def test_a_wait_in_parts_is_counted_once(waits_of):
    """As for records that are looked at a batch after the other."""
    assert waits_of(
        (10, Call.BEGIN, Step.COUNTS), (10, Call.BEGIN_WAIT),
        (20, Call.WAIT_FOR, 0), (30, Call.END_WAIT), (40, Call.WAIT_FOR, 7), (60, Call.END_WAIT),
        (70, Call.BEGIN, Step.NONE),
    ) == [(50, 7), (0, NOBODY)]  # fmt: skip


@pytest.mark.parametrize("past", [-1, 0, 1, MOST])
def test_a_longer_wait_than_there_is_room_for_is_the_longest(waits_of, past):
    assert waits_of(
        (10, Call.BEGIN, Step.COUNTS), (10, Call.BEGIN_WAIT), (11, Call.WAIT_FOR, 1), (11, Call.END_WAIT),
        (11, Call.WAIT_FOR, 1), (10 + MOST + past, Call.END_WAIT),
    )[0] == (MOST + min(past, 0), 1)  # fmt: skip
