"""A profile that cannot be started or written is answered, and the rank goes on."""

import enum
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ascend_moe.serving.worker import profiling


class ProfileReqType(enum.Enum):
    """SGLang's."""

    START_PROFILE = 1
    STOP_PROFILE = 2


START = SimpleNamespace(req_type=ProfileReqType.START_PROFILE)
STOP = SimpleNamespace(req_type=ProfileReqType.STOP_PROFILE)
SERVED = "served by SGLang"


@pytest.fixture(autouse=True)
def sglang(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of SGLang's module, which takes long to import."""
    types = SimpleNamespace(ProfileReqOutput=SimpleNamespace, ProfileReqType=ProfileReqType)
    monkeypatch.setitem(sys.modules, "sglang.srt.managers.io_struct", types)


def serve(_profiles: object, _request: object) -> str:
    return SERVED


@pytest.mark.parametrize("running", [False, True])
def test_one_profile_is_taken_at_a_time(running):
    profiles = SimpleNamespace(profile_in_progress=running)
    assert profiling.start_or_stop(serve, profiles, STOP) == SERVED
    answer = profiling.start_or_stop(serve, profiles, START)
    assert (answer != SERVED) == running
    assert not running or not answer.success


def test_profiles_that_sglang_keeps_otherwise_are_its_own():
    assert profiling.start_or_stop(serve, SimpleNamespace(), START) == SERVED
    assert profiling.stop(lambda *_: SERVED, SimpleNamespace(torch_profiler=None)) == SERVED


@pytest.mark.parametrize("fault", [None, OSError("no space left")], ids=["written", "lost"])
def test_a_rank_meets_the_others_whether_or_not_it_could_write(fault):
    done: list[str] = []

    def export(path: str) -> None:
        if fault is not None:
            raise fault
        done.append(path)

    def stop(profiles: Any, _stage: object) -> str:
        profiles.torch_profiler.export_chrome_trace("trace")
        done.append("met the others")
        return SERVED

    running = SimpleNamespace(torch_profiler=SimpleNamespace(export_chrome_trace=export))
    answer = profiling.stop(stop, running)
    assert done == (["trace"] if fault is None else []) + ["met the others"]
    if fault is None:
        assert answer == SERVED
    else:
        assert (answer.success, answer.message) == (False, "the trace cannot be written: no space left")
