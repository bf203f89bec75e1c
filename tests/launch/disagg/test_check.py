"""`check` says what differs from the reference, whatever way it differs, and says nothing if nothing does."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.launch.disagg import disagg_command
from sglang_ascend_moe.launch.disagg.generate_client import as_computed
from sglang_ascend_moe.launch.disagg.questions import prompts
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, OK, WRONG_USAGE
from tests.launch.disagg.fake_server import FakeServer

CHECKS = 7


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers of a faultless server, written by `--record`."""
    path = tmp_path_factory.mktemp("reference") / "answers.json"
    with FakeServer() as server:
        assert disagg_command.main(["check", "--url", server.url, "--record", str(path)]) == OK
    return path


def check(fault: str, *arguments: str) -> int:
    # One after the other, again, and streamed: then several at a time.
    with FakeServer(fault, later=3 * len(prompts(3000))) as server:
        return disagg_command.main(["check", "--url", server.url, *arguments])


def test_a_server_that_answers_like_the_reference_passes_every_check(
    recorded: Path, capsys: pytest.CaptureFixture[str]
):
    assert check("", "--reference", str(recorded)) == OK
    printed = capsys.readouterr().out
    assert printed.count("ok  ") == CHECKS
    assert "EQUAL" in printed


def test_a_reference_may_be_a_server():
    with FakeServer() as reference:
        assert check("", "--reference", reference.url) == OK


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        ("token", "one after the other, the same again, from the prefix cache"),
        ("logprob", "one after the other"),
        ("error", "one after the other"),
        ("cut", "streamed"),
        ("whole", "streamed"),
        ("later", "8 at a time, 8 streams at a time"),
        ("after abort", "after the aborted ones"),
    ],
)
def test_a_fault_fails_the_check_that_is_for_it(
    fault: str, failing: str, recorded: Path, capsys: pytest.CaptureFixture[str]
):
    assert check(fault, "--reference", str(recorded)) == CHECK_FAILED
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("DIFFERENT OR FAILING: ")
    assert failing in last
    if fault in ("cut", "whole", "later", "after abort"):
        assert "one after the other" not in last


def test_a_tolerance_can_be_given(recorded: Path):
    assert check("logprob", "--reference", str(recorded), "--logprob-tolerance", "6") == OK


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--reference", "absent.json"],
        ["--reference", "ANSWERS", "--new-tokens", "7"],
        ["--reference", "ANSWERS", "--longest", "40"],
        ["--reference", "ANSWERS", "--record", "x"],
        ["--reference", "ANSWERS", "--concurrent", "0"],
    ],
    ids=lambda arguments: " ".join(arguments) or "no reference",
)
def test_a_reference_that_cannot_be_compared_is_wrong_usage(arguments: list[str], recorded: Path):
    given = [str(recorded) if word == "ANSWERS" else word for word in arguments]
    assert disagg_command.main(["check", "--url", "http://127.0.0.1:1", *given]) == WRONG_USAGE


def test_a_reference_that_does_not_answer_is_told_apart_from_a_failed_check():
    assert check("", "--reference", "http://127.0.0.1:1") == CANNOT


def test_a_deployment_that_does_not_answer_fails(recorded: Path):
    assert disagg_command.main(["check", "--url", "http://127.0.0.1:1", "--reference", str(recorded)]) == CHECK_FAILED


@pytest.mark.parametrize("longest", [1, 40, 3000])
def test_prompts_have_every_length_and_no_one_begins_another(longest: int):
    asked = prompts(longest)
    assert max(map(len, asked)) == longest
    assert len(set(asked)) == len(asked)
    whole = [prompt for prompt in asked if len(prompt) >= 20]
    assert [a for a in whole for b in whole if a is not b and b.startswith(a[:20])] == []


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([-math.inf, math.inf]))
def test_a_logprob_survives_a_change_of_its_last_digit(logprob: float, direction: float):
    assert as_computed(logprob) == logprob
    assert as_computed(math.nextafter(logprob, direction)) == logprob
