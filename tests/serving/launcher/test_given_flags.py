"""A command line is read without SGLang as SGLang's own parser reads it."""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.launcher import given_flags
from sglang_ascend_moe.serving.options import Options

CHECKED_TYPES = {"int": "int", "float": "float", "human_readable_int": "_human_readable_int"}
"""Names of the functions of SGLang that read a value -> ours. Values that others read stay text."""
KINDS = {
    "_StoreTrueAction": ("_StoreTrueAction",),
    "BooleanOptionalAction": ("BooleanOptionalAction",),
    "_OtherSwitch": ("DeprecatedStoreTrueAction",),
    "_OtherValue": ("LoRAPathAction", "DeprecatedStoreConstAction"),
    "_StoreAction": ("_StoreAction", "_ServicerImplAction", "_EnvStoreAction"),
}
"""Actions of the parser without SGLang -> those of SGLang's."""


@pytest.fixture(scope="module")
def sglangs() -> argparse.ArgumentParser:
    """SGLang's parser, with the flags of all plugins that are installed."""
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import ServerArgs

    load_plugins()
    parser = argparse.ArgumentParser(add_help=False)
    ServerArgs.add_cli_args(parser)
    return parser


@pytest.fixture(scope="module")
def ours() -> argparse.ArgumentParser:
    return given_flags._parser.__wrapped__()


def described(parser: argparse.ArgumentParser) -> dict[str, tuple[Any, ...]]:
    return {action.option_strings[0]: (action.option_strings, action.dest, action.nargs) for action in parser._actions}


def test_every_flag_is_known_with_its_spellings_and_the_number_of_its_values(sglangs, ours):
    assert given_flags.is_tested()
    assert described(ours) == described(sglangs)


def test_every_flag_is_of_the_same_kind_and_numbers_are_read_as_such(sglangs, ours):
    actions = {action.option_strings[0]: action for action in ours._actions}
    different = []
    for theirs in sglangs._actions:
        mine = actions[theirs.option_strings[0]]
        wanted = CHECKED_TYPES.get(getattr(theirs.type, "__name__", ""), "str")
        if theirs.option_strings[0] in given_flags.FLAGS_OF_PLUGINS:
            wanted = "str"
        found = getattr(mine.type, "__name__", "str")
        if type(theirs).__name__ not in KINDS[type(mine).__name__] or (theirs.nargs != 0 and found != wanted):
            different.append((theirs.option_strings[0], type(mine).__name__, type(theirs).__name__, found, wanted))
    assert different == []


def test_choices_are_those_of_sglang_where_no_plugin_may_add_some(sglangs, ours):
    theirs = {action.dest: action.choices for action in sglangs._actions}
    known = {action.dest: list(action.choices) for action in ours._actions if action.choices is not None}
    assert known == {name: list(theirs[name]) for name in known}
    assert len(known) > 40


def test_defaults_are_those_of_sglang_where_they_are_known(sglangs, ours):
    """Not of a few that are computed, or lists."""
    theirs = {action.dest: action.default for action in sglangs._actions}
    known = {action.dest: action.default for action in ours._actions if action.default is not None}
    assert {name: value for name, value in known.items() if theirs[name] != value} == {}
    assert len(known) > 300


def command_lines(sglangs: argparse.ArgumentParser) -> Iterator[list[str]]:
    """Words as people type them: with `=`, abbreviated, several values, none, and what is no flag."""
    drawn = random.Random(0)
    values = {"int": "3", "float": "0.5", "human_readable_int": "25.6k"}
    for action in sglangs._actions:
        flag = drawn.choice(action.option_strings)
        value = values.get(getattr(action.type, "__name__", ""), next(iter(action.choices or ["word"])))
        yield [flag] if action.nargs == 0 else [flag, str(value)]
        yield [f"{flag}={value}"]
        yield [flag[: drawn.randint(4, len(flag))], *([] if action.nargs == 0 else [str(value)])]
        yield [flag, "one", "two"]
        yield [flag, "--page-size", "1"]
        yield [f"{flag}x", "1"]


class Refused(Exception):
    """What argparse refuses in place of ending the process."""


def outcome(parser: argparse.ArgumentParser, words: list[str]) -> tuple[Any, ...]:
    """The words that are left over, and the names of the settings that are set; or that it is refused."""
    try:
        parsed, unknown = parser.parse_known_args(words)
    except Refused:
        return ("refused",)
    return unknown, set(vars(parsed))


def test_what_sglang_accepts_is_accepted_and_means_the_same(sglangs, ours, monkeypatch: pytest.MonkeyPatch):
    def error(message: str) -> None:
        raise Refused(message)

    for parser in (sglangs, ours):
        monkeypatch.setattr(parser, "error", error)
        for action in parser._actions:
            monkeypatch.setattr(action, "default", argparse.SUPPRESS)
    required = ["--model-path", "m"]
    wrong = []
    for words in command_lines(sglangs):
        theirs, mine = outcome(sglangs, [*required, *words]), outcome(ours, [*required, *words])
        if theirs != ("refused",) and theirs != mine:
            wrong.append((words, theirs, mine))
    assert wrong == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("m --tp-sizee 2", "unrecognized arguments: m --tp-sizee 2"),
        ("--tp-sizee 2", "unrecognized arguments: --tp-sizee 2; did you mean --tp-size?"),
        ("--tp-size two", "--tp-size: invalid int value: 'two'"),
        ("--context-length 8x", "--context-length: invalid _human_readable_int value: '8x'"),
        ("--tensor-parallel-size", "--tp-size: expected one argument"),
        ("--enable-m 3", "ambiguous option: --enable-m could match "),
        ("--ascend-moe --ascend-moe-quant int4", "--ascend-moe-quant 'int4': choose one of none, int8"),
        ("--config no/such.yaml", "--config no/such.yaml: Config file not found: no/such.yaml"),
        ("--config", "--config: No config file specified after --config flag!"),
    ],
)
def test_what_is_wrong_is_said(words: str, said: str):
    with pytest.raises(InvalidInput) as refusal:
        given_flags.read_strictly(words.split())
    assert str(refusal.value).startswith(said)
    assert len(str(refusal.value)) < 400


def test_words_are_not_refused_where_other_plugins_may_know_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(given_flags.TESTED, "smg-grpc-servicer", "0.14.0")
    assert given_flags.read_strictly(["--tp-size", "2", "--unheard-of", "3"]).settings.tp_size == 2


def test_a_file_of_config_is_read_as_sglang_reads_it(tmp_path: Path):
    file = tmp_path / "server.yaml"
    file.write_text("model: m\ntp: 4\nport: 1234\nascend-moe: true\nascend-moe-timeout: 5\nlog-requests: false\n")
    given = given_flags.read(["--config", str(file), "--tp-size", "2"])
    settings = given.settings
    assert (settings.model_path, settings.tp_size, settings.port, settings.log_requests) == ("m", 2, 1234, False)
    assert given.options == Options(timeout_s=5.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [("tp: [1", "while parsing"), ("- tp", "Config file must contain a dictionary"), ("no_such: 3", "unrecognized")],
    ids=["no YAML", "no mapping", "no flag"],
)
def test_a_file_of_config_that_cannot_be_used_is_named(
    tmp_path: Path, text: str, said: str, capfd: pytest.CaptureFixture[str]
):
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(InvalidInput, match=said) as refusal:
        given_flags.read_strictly(["--config", str(file)])
    assert "\n" not in str(refusal.value)
    assert capfd.readouterr().err == ""
