"""The command `ascend-moe`: its exit codes, and what it passes on to SGLang."""

import pytest

from sglang_ascend_moe.launch import main
from sglang_ascend_moe.launch.servers import serve
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE
from sglang_ascend_moe.serving.options import FLAGS


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
        (["m", "--tp-size", "2"], ["--model-path", "m", "--tp-size", "2", "--ascend-moe"]),
        (["--model-path", "m"], ["--model-path", "m", "--ascend-moe"]),
        (["m", "--ascend-moe"], ["--model-path", "m", "--ascend-moe"]),
    ],
    ids=["model in place", "model by flag", "everything given"],
)
def test_serve_gives_sglang_what_is_missing(given: list[str], expected: list[str]):
    assert serve.server_arguments(given) == expected
