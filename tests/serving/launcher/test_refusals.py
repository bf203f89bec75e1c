"""What flags and options decide of a server is refused before it starts, beginning with the flag; for SGLang's server
arguments and for a command line that was read without SGLang alike."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

import pytest

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, Unsupported
from sglang_ascend_moe.serving import options
from sglang_ascend_moe.serving.launcher import given_flags, refusals
from sglang_ascend_moe.serving.launcher.conflicts import CONFLICTS, Conflict
from sglang_ascend_moe.serving.options import Options
from tests.serving.launcher.test_conflicts import FINE, SETTINGS

REFUSED = {
    "--moe-a2a-backend deepep": "--moe-a2a-backend deepep: --ascend-moe is such a backend itself",
    "--ep-size 3 --tp-size 2": "--ep-size 3 with --tp-size 2: the exchange spans",
    "--ep 4 --tensor-parallel-size 2": "--ep-size 4 with --tp-size 2: the exchange spans",
    "--ascend-moe-stay-awake --sleep-on-idle": "--ascend-moe-stay-awake with --sleep-on-idle",
    "--device cuda": "--device cuda: --ascend-moe runs with --device cpu and --device npu",
    "--device cpu --ascend-moe-windows memfabric": "--ascend-moe-windows: windows of the host need no provider",
    "--device npu --ascend-moe-verify": "--ascend-moe-verify: the Ascend kernels make no checksums",
    "--device npu --ascend-moe-schedule collective": "--ascend-moe-schedule collective: the baseline",
    "--quantization fp8": "--quantization fp8 does not work with --ascend-moe",
    "--lora-paths one=/adapters/one two=/adapters/two": "--lora-paths does not work with --ascend-moe: adapters",
}
ACCEPTED = [
    "--ep-size 2 --tp-size 2",
    "--moe-a2a-backend ascend_fuseep",
    "--device npu --quantization modelslim",
    "--device npu:3 --ascend-moe-windows aclshmem",
    "--ascend-moe-verify --ascend-moe-quant int8",
    "--ascend-moe-schedule collective",
    "--lora-paths",
    "--nnodes 1 --model /models/moe",
]


@pytest.fixture(scope="module")
def parser() -> argparse.ArgumentParser:
    """SGLang's own, with our flags."""
    from sglang.srt.server_args import ServerArgs

    made = argparse.ArgumentParser()
    ServerArgs.add_cli_args(made)
    # In a process that has loaded the plugin SGLang's parser has them already.
    if not any(options.ASK_FLAG in action.option_strings for action in made._actions):
        options.add_flags(made)
    return made


def outcome(settings: Any, asked: Options | None) -> str:
    """What is said of a server, empty if nothing."""
    assert asked is not None
    try:
        refusals.refuse_flags(settings, asked, {})
    except AscendMoeError as refusal:
        return str(refusal)
    return ""


def as_sglang_reads(parser: argparse.ArgumentParser, words: list[str]) -> str:
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.server_args import ServerArgs

    parsed = parser.parse_args(["--model-path", "dummy", *words])
    server_args = ServerArgs.from_cli_args(parsed)
    return outcome(resolving_view(server_args), options.from_namespace(parsed))


def as_words(settings: dict[str, object]) -> list[str]:
    """The command line that makes these settings."""
    words = []
    for name, value in settings.items():
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else map(str, value) if isinstance(value, list) else [str(value)]
    return words


@pytest.mark.parametrize("text", REFUSED)
def test_a_refusal_begins_with_the_flag_and_is_the_same_with_and_without_sglang(parser, text: str):
    words = ["--ascend-moe", *shlex.split(text)]
    said = outcome(*given_flags.read(words))
    assert said.startswith(REFUSED[text])
    assert as_sglang_reads(parser, words) == said


@pytest.mark.parametrize("text", ACCEPTED)
def test_what_can_be_served_is_let_through_with_and_without_sglang(parser, text: str):
    words = ["--ascend-moe", *shlex.split(text)]
    assert (outcome(*given_flags.read(words)), as_sglang_reads(parser, words)) == ("", "")


@pytest.mark.parametrize("flag", SETTINGS)
def test_every_conflict_is_found_on_a_command_line_as_in_server_arguments(parser, flag: str):
    words = ["--ascend-moe", *as_words(SETTINGS[flag])]
    said = outcome(*given_flags.read(words))
    assert said.startswith(f"{flag} ")
    assert as_sglang_reads(parser, words) == said


@pytest.mark.parametrize("settings", FINE, ids=lambda settings: ",".join(settings))
def test_no_conflict_is_seen_on_a_command_line_where_there_is_none(settings: dict[str, object]):
    assert outcome(*given_flags.read(["--ascend-moe", *as_words(settings)])) == ""


def test_without_the_package_there_are_no_options():
    assert given_flags.read(["--tp-size", "2"]).options is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nnodes", "many"], "--nnodes: invalid int value: 'many'"),
        (["--ascend-moe", "--ascend-moe-quant", "int4"], "--ascend-moe-quant 'int4': choose one of none, int8"),
        (["--ascend-moe-verify"], "--ascend-moe-verify has no effect without --ascend-moe"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_value_that_is_none_is_named(words: list[str], said: str):
    with pytest.raises(InvalidInput) as refusal:
        given_flags.read(words)
    assert str(refusal.value).startswith(said)


VARIABLES = [conflict for conflict in CONFLICTS if not conflict.flag.startswith("--")]


@pytest.mark.parametrize("conflict", VARIABLES, ids=lambda conflict: conflict.flag)
@pytest.mark.parametrize("text", ["1", "true", "Yes", "y", "0", "false", "N", "no", None])
def test_a_variable_is_read_as_sglang_reads_it(monkeypatch: pytest.MonkeyPatch, text: str | None, conflict: Conflict):
    from sglang.srt.environ import envs

    monkeypatch.delenv(conflict.flag, raising=False)
    environment = {} if text is None else {conflict.flag: text}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert conflict.found(environment) == getattr(envs, conflict.flag).get()


def test_w8a8_is_for_npus_only():
    model = refusals.Model("/models/moe", "modelslim", 16, 64)
    refusals.refuse_model(model, refusals.Division(4, 0), on_npu=True)
    with pytest.raises(Unsupported, match=r"/models/moe is quantised \(modelslim\)"):
        refusals.refuse_model(model, refusals.Division(4, 0), on_npu=False)
    with pytest.raises(Unsupported, match=r"is quantised \(fp8\)"):
        refusals.refuse_model(model._replace(quantisation="fp8"), refusals.Division(4, 0), on_npu=True)
