"""A profile that cannot be started or written is answered, and the rank goes on."""

import enum
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.options import Options
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

    def export(path: str, *, use_python_export: bool) -> None:
        if fault is not None:
            raise fault
        assert not use_python_export
        done.append(path)

    def stop(profiles: Any, _stage: object) -> str:
        # As torch's handler of traces does on NPUs.
        profiles.torch_profiler.export_chrome_trace("trace", use_python_export=False)
        done.append("met the others")
        return SERVED

    running = SimpleNamespace(torch_profiler=SimpleNamespace(export_chrome_trace=export))
    answer = profiling.stop(stop, running)
    assert done == (["trace"] if fault is None else []) + ["met the others"]
    if fault is None:
        assert answer == SERVED
    else:
        assert (answer.success, answer.message) == (False, "the trace cannot be written: no space left")


class Mode(enum.Enum):
    """SGLang's, as far as it is asked."""

    EXTEND = "is_prefill"
    DECODE = "is_decode"

    def is_prefill(self) -> bool:
        return self is Mode.EXTEND

    def is_decode(self) -> bool:
        return self is Mode.DECODE


class Staged:
    """SGLang's profiles by stage, of `num_steps` steps each."""

    def __init__(self, num_steps: int) -> None:
        self.profile_by_stage = True
        self.profile_in_progress = False
        self.profiler_prefill_ct = self.profiler_decode_ct = 0
        self._target = num_steps
        self.calls: list[list[str]] = []

    def _start_profile(self, stage: Mode) -> None:
        assert not self.profile_in_progress
        self.profile_in_progress = True
        self.calls[-1].append(f"start {stage.name}")

    def _stop_profile(self, stage: Mode) -> None:
        self.profile_in_progress = False
        self.calls[-1].append(f"stop {stage.name}")

    def _profile_batch_predicate(self, batch: SimpleNamespace) -> None:
        count = "profiler_prefill_ct" if batch.forward_mode.is_prefill() else "profiler_decode_ct"
        if getattr(self, count) == 0:
            if batch.forward_mode.is_decode() and self.profile_in_progress:
                self._stop_profile(stage=Mode.EXTEND)
            self._start_profile(batch.forward_mode)
        setattr(self, count, getattr(self, count) + 1)
        if getattr(self, count) > self._target and self.profile_in_progress:
            self._stop_profile(stage=batch.forward_mode)


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        pytest.param("EDDDE", ["start EXTEND", "stop EXTEND", "start DECODE", "stop DECODE"], id="a prompt comes"),
        pytest.param("DEDEED", ["start DECODE", "stop DECODE", "start EXTEND", "stop EXTEND"], id="while others run"),
    ],
)
def test_a_stage_is_profiled_after_another_has_been(monkeypatch, modes, expected):
    """One that began in the call that ended the other crashed servers, after their first profile or their fortieth."""
    modules = SimpleNamespace(ForwardMode=Mode)
    monkeypatch.setitem(sys.modules, "sglang.srt.model_executor.forward_batch_info", modules)
    profiles = Staged(num_steps=1)
    for letter in modes:
        profiles.calls.append([])
        mode = Mode.EXTEND if letter == "E" else Mode.DECODE
        profiling.step(Staged._profile_batch_predicate, profiles, SimpleNamespace(forward_mode=mode))
    assert [call for calls in profiles.calls for call in calls] == expected
    assert max(map(len, profiles.calls)) == 1


class Traced(list[object]):
    """In place of `layer`: where exchanges were told to write down their steps, None: no more."""

    def __init__(self, serving: object, fault: Exception | None = None) -> None:
        self._serving, self._fault = serving, fault

    def serving(self) -> object:
        return self._serving

    def exchanges(self) -> list[object]:
        return []

    def trace_into(self, folder: object, _exchanges: object) -> None:
        if self._fault is not None and folder is not None:
            raise self._fault
        self.append(folder)


FOLDER = Path("profiles")
SERVING = SimpleNamespace(options=Options())


@pytest.mark.parametrize(
    ("stage", "name"),
    [(None, "17.5-steps"), (SimpleNamespace(name="DECODE"), "17.5-steps-DECODE")],
    ids=["all", "by-stage"],
)
def test_steps_are_written_down_from_the_begin_of_a_profile_to_its_end(monkeypatch, stage, name):
    traced = Traced(SERVING)
    monkeypatch.setattr(profiling, "layer", traced)
    profiles = SimpleNamespace(torch_profiler_output_dir=FOLDER, profile_id="17.5")
    profiling.trace_steps(SimpleNamespace(success=False), profiles, stage)
    assert traced == []
    profiling.trace_steps(SimpleNamespace(success=True), profiles, stage)
    # As SGLang ends a stage.
    profiling.end_trace(SimpleNamespace(success=True), profiles, stage=stage)
    assert traced == [FOLDER / name, None]


@pytest.mark.parametrize(
    ("serving", "profiles"),
    [
        (None, SimpleNamespace(torch_profiler_output_dir=FOLDER)),
        (SERVING, SimpleNamespace()),
        (SimpleNamespace(options=Options(trace="x")), SimpleNamespace(torch_profiler_output_dir=FOLDER)),
    ],
    ids=["off", "kept-otherwise", "traced-anyway"],
)
def test_a_profile_does_not_begin_what_cannot_be_or_goes_on_anyway(monkeypatch, serving, profiles):
    traced = Traced(serving)
    monkeypatch.setattr(profiling, "layer", traced)
    profiling.trace_steps(SimpleNamespace(success=True), profiles)
    assert traced == []


def test_a_profile_goes_on_without_steps_that_cannot_be_written(monkeypatch, caplog):
    monkeypatch.setattr(profiling, "layer", Traced(SERVING, InvalidInput("no space left")))
    profiles = SimpleNamespace(torch_profiler_output_dir=FOLDER, profile_id="17.5")
    profiling.trace_steps(SimpleNamespace(success=True), profiles)
    assert "no space left" in caplog.text
