"""The command `ascend-moe`: its exit codes, and what it passes on to SGLang."""

import msgspec
import pytest

from sglang_ascend_moe.hooks import State
from sglang_ascend_moe.launch import doctor, main, serve
from sglang_ascend_moe.launch.exit_codes import CANNOT, CHECK_FAILED, OK, WRONG_USAGE
from sglang_ascend_moe.options import FLAGS


@pytest.mark.parametrize(
    ("arguments", "code"),
    [([], WRONG_USAGE), (["sreve"], WRONG_USAGE), (["--help"], OK), (["-h"], OK), (["--version"], OK)],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else None,
)
def test_the_command_alone_has_the_exit_code_of_its_usage(arguments: list[str], code: int):
    assert main.main(arguments) == code


def test_usage_names_every_command(capsys: pytest.CaptureFixture[str]):
    main.main(["--help"])
    printed = capsys.readouterr().out
    assert [name for name in main.COMMANDS if f"  {name} " not in printed] == []


def test_a_command_gets_its_arguments_and_gives_its_exit_code(monkeypatch: pytest.MonkeyPatch):
    got = []
    monkeypatch.setitem(main.COMMANDS, "probe", main.Command(lambda rest: got.append(rest) or 7, "for the test"))
    assert main.main(["probe", "--help", "x"]) == 7
    assert got == [["--help", "x"]]


def test_help_of_serve_shows_every_flag(capsys: pytest.CaptureFixture[str]):
    assert main.main(["serve", "--help"]) == OK
    printed = capsys.readouterr().out
    assert [item.flag for item in FLAGS.values() if item.flag not in printed] == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["m", "--tp-size", "2"], ["--model-path", "m", "--tp-size", "2", "--ascend-moe", "--device", "cpu"]),
        (["--model-path", "m"], ["--model-path", "m", "--ascend-moe", "--device", "cpu"]),
        (["m", "--device", "npu"], ["--model-path", "m", "--device", "npu", "--ascend-moe"]),
        (["m", "--device=cpu", "--ascend-moe"], ["--model-path", "m", "--device=cpu", "--ascend-moe"]),
    ],
    ids=["model in place", "model by flag", "device given", "everything given"],
)
def test_serve_adds_what_is_missing_for_a_machine_without_accelerator(
    monkeypatch: pytest.MonkeyPatch, given: list[str], expected: list[str]
):
    monkeypatch.setattr(serve, "activate", lambda: "a platform")
    assert serve.server_arguments(given) == expected


def test_serve_leaves_the_device_to_sglang_where_there_is_an_accelerator(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(serve, "activate", lambda: None)
    assert serve.server_arguments(["m"]) == ["--model-path", "m", "--ascend-moe"]


HEALTHY = doctor.Report(
    versions={"sglang": "0.5.23"},
    machine="x86_64, 0 Ascend NPUs",
    platform="host, without accelerator",
    kernels="works",
    plugin="works",
    hooks=[
        doctor.HookReport("a.b", "after", "worker", "always", State.APPLIED.value, "", "it is needed"),
        doctor.HookReport("a.c", "set", "worker", "host", State.NOT_APPLICABLE.value, "only for host", "it is needed"),
    ],
)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({}, OK),
        ({"kernels": "they are not built"}, CANNOT),
        ({"versions": {"sglang": doctor.ABSENT}}, CANNOT),
        ({"plugin": "SGLang did not load it"}, CHECK_FAILED),
        (
            {"hooks": [doctor.HookReport("a.b", "after", "worker", "always", State.FAILED.value, "no b", "so it is")]},
            CHECK_FAILED,
        ),
    ],
    ids=["healthy", "no kernels", "no SGLang", "no plugin", "a failed hook"],
)
def test_the_doctor_fails_for_what_stops_a_server(changed: dict[str, object], code: int):
    assert msgspec.structs.replace(HEALTHY, **changed).exit_code() == code


def test_the_report_for_people_has_everything_that_the_report_has():
    text = doctor.text_of(HEALTHY)
    expected = ["0.5.23", HEALTHY.machine, HEALTHY.platform, "a.b", "a.c", "not applicable (only for host)"]
    assert [part for part in expected if part not in text] == []


def test_the_doctor_sees_the_kernels_work():
    assert doctor._kernels() == "works"
