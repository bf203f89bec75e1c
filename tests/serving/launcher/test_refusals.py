"""What flags and options decide of a server is refused before it starts, beginning with the flag; for SGLang's server
arguments and for a command line that was read without SGLang alike."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, Unsupported
from sglang_ascend_moe.serving import options
from sglang_ascend_moe.serving.launcher import asked_device, given_flags, refusals
from sglang_ascend_moe.serving.launcher.conflicts import CONFLICTS, Conflict
from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE, expert_formats
from sglang_ascend_moe.serving.options import Options
from tests.serving.launcher.test_conflicts import FINE, SETTINGS

REFUSED = {
    "--moe-a2a-backend mori": "--moe-a2a-backend mori: --ascend-moe is such a backend itself",
    "--ep-size 3 --tp-size 2": "--ep-size 3 with --tp-size 2: the exchange spans",
    "--ep 4 --tensor-parallel-size 2": "--ep-size 4 with --tp-size 2: the exchange spans",
    "--ascend-moe-stay-awake --sleep-on-idle": "--ascend-moe-stay-awake with --sleep-on-idle",
    "--device cuda": "--device cuda: --ascend-moe runs with --device cpu and --device npu",
    "--device cpu --ascend-moe-windows memfabric": "--ascend-moe-windows: windows of the host need no provider",
    "--device npu --ascend-moe-verify": "--ascend-moe-verify: the Ascend kernels make no checksums",
    "--device npu --ascend-moe-schedule collective": "--ascend-moe-schedule collective: the baseline",
    "--dp-size 4 --tp-size 2 --enable-dp-attention": "--dp-size 4 with --tp-size 2: groups of attention have equally",
    "--attn-dp-size 3 --tp-size 4": "--attn-dp-size 3 with --tp-size 4: groups of attention have equally",
    "--attn-dp-size 3 --dp-size 2 --tp-size 4 --enable-dp-attention": "--attn-dp-size 3 with --tp-size 4: groups of",
    "--tp-size 4 --pp-size 3 --nnodes 2 --dist-init-addr 10.0.0.1:5000": (
        "--nnodes 2 with --tp-size 4 and --pp-size 3: nodes have equally many ranks; choose a number that divides 3, or"
    ),
    "--tp-size 4 --pp-size 2 --nnodes 3 --dist-init-addr 10.0.0.1:5000": "--nnodes 3 with --tp-size 4 and --pp-size 2",
    "--pp-size 0": "--pp-size 0: must be at least 1",
    "--pp-size 2 --pp-max-micro-batch-size 0": "--pp-max-micro-batch-size 0: must be at least 1",
    "--pp-size 2 --speculative-algorithm EAGLE": "--pp-size 2 does not work with --ascend-moe: drafts",
    "--pp-size 2 --enable-eplb": "--enable-eplb does not work with --ascend-moe: with --pp-size",
    "--mem-fraction-static 5": "--mem-fraction-static 5.0: must be above 0 and at most 1",
    "--mem-fraction-static 0": "--mem-fraction-static 0.0: must be above 0 and at most 1",
    "--max-running-requests 0": "--max-running-requests 0: must be at least 1",
    "--max-total-tokens -1": "--max-total-tokens -1: must be at least 1",
    "--context-length 0": "--context-length 0: must be at least 1",
    "--page-size 0": "--page-size 0: must be at least 1",
    "--device cpu --attention-backend flashinfer": "--attention-backend flashinfer: is for accelerators",
    "--device cpu --decode-attention-backend ascend": "--decode-attention-backend ascend: is for accelerators",
    "--quantization fp8": "--quantization fp8 does not work with --ascend-moe",
    "--lora-paths one=/adapters/one two=/adapters/two": "--lora-paths does not work with --ascend-moe: adapters",
}
ACCEPTED = [
    "--device npu --ascend-moe-trace folder",
    "--ep-size 2 --tp-size 2",
    "--dp-size 2 --tp-size 4 --enable-dp-attention",
    "--dp-size 3 --tp-size 2",
    "--tp-size 4 --pp-size 8 --nnodes 2 --dist-init-addr 10.0.0.1:5000",
    "--tp-size 4 --pp-size 2 --nnodes 4 --dist-init-addr 10.0.0.1:5000",
    "--pp-size 2 --enable-dynamic-chunking",
    "--moe-a2a-backend ascend_fuseep",
    "--moe-a2a-backend deepep --deepep-mode low_latency",
    "--device npu --quantization modelslim",
    "--device npu --attention-backend ascend",
    "--device cpu --attention-backend torch_native --mem-fraction-static 1 --max-running-requests 1",
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


SWITCHES = [
    conflict
    for conflict in CONFLICTS
    if conflict.flag in ("SGLANG_ENABLE_DP_SPEC_PREFILL_COORDINATION", "SGLANG_RUST_SERVER")
]


@pytest.mark.parametrize("conflict", SWITCHES, ids=lambda conflict: conflict.flag)
@pytest.mark.parametrize("text", ["1", "true", "Yes", "y", "0", "false", "N", "no", None])
def test_a_variable_is_read_as_sglang_reads_it(monkeypatch: pytest.MonkeyPatch, text: str | None, conflict: Conflict):
    from sglang.srt.environ import envs

    monkeypatch.delenv(conflict.flag, raising=False)
    environment = {} if text is None else {conflict.flag: text}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert conflict.found(environment) == getattr(envs, conflict.flag).get()


@pytest.mark.parametrize("name", ["modelslim", "compressed-tensors", "fp8"])
@pytest.mark.parametrize("multiplied_out", [True, False], ids=["dequantised by hosts", "not"])
def test_a_quantised_checkpoint_is_served_where_something_computes_with_it(name, multiplied_out):
    model = refusals.Model("/models/moe", name, 16, 64, multiplied_out=multiplied_out)
    for on_npu, served in ((True, name != "fp8"), (False, multiplied_out)):
        if served:
            refusals.refuse_model(model, refusals.Division(4, 0), on_npu=on_npu)
            continue
        with pytest.raises(Unsupported, match=rf"is quantised \({name}\).*W4A8 of modelslim or compressed-tensors$"):
            refusals.refuse_model(model, refusals.Division(4, 0), on_npu=on_npu)


FORMATS = {
    "W8A8_DYNAMIC": ("mlp.experts.0.gate_proj", True),
    "FLOAT": ("mlp.experts.0.w1", True),
    "W4A8_DYNAMIC": ("mlp.experts.0.up_proj", True),
    "W4A4_DYNAMIC": ("mlp.experts.0.up_proj", False),
    "W8A8": ("block_sparse_moe.experts.0.w2", False),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_experts_are_served_in_the_formats_of_the_runner_only(tmp_path: Path, kind: str):
    place, served = FORMATS[kind]
    described = {f"model.layers.3.{place}.weight": kind, f"model.layers.3.{place}.weight_scale": "W9A9"}
    described |= {
        f"model.layers.3.{place}.scale_bias": kind,
        "model.layers.0.mlp.gate_proj.weight": "W4A4",
        "model_quant_type": "W2A2",
    }
    (tmp_path / MODELSLIM_FILE).write_text(json.dumps(described))
    model = refusals.Model("/models/moe", "modelslim", 16, 64, expert_formats=expert_formats(tmp_path))
    assert model.expert_formats == {kind}
    refused = pytest.raises(Unsupported, match=rf"the experts of /models/moe are {kind} \(modelslim\)")
    with contextlib.nullcontext() if served else refused:
        refusals.refuse_model(model, refusals.Division(4, 0), on_npu=True)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (["weight", "weight_scale", "scale_bias"], "W4A8_DYNAMIC"),
        (["weight"], "W4A8_DYNAMIC"),
        (["weight", "weight_scale", "weight_scale_second"], "W4A8_DYNAMIC with a scale per group"),
        (["weight", "weight_scale"], "W4A8_DYNAMIC without scale_bias"),
    ],
    ids=["per channel", "weights alone", "per group", "of an old tool"],
)
def test_weights_of_four_bits_are_told_apart_by_their_tensors(tmp_path: Path, tensors: list[str], said: str):
    described = {f"model.layers.0.mlp.experts.0.down_proj.{name}": "W4A8_DYNAMIC" for name in tensors}
    (tmp_path / MODELSLIM_FILE).write_text(json.dumps(described))
    assert expert_formats(tmp_path) == {said}
    assert (said in refusals.EXPERT_FORMATS) == (said == "W4A8_DYNAMIC")


@pytest.mark.parametrize("text", ["[]", "{", ""], ids=["a list", "half an object", "nothing"])
def test_a_description_that_is_none_is_named(tmp_path: Path, text: str):
    assert expert_formats(tmp_path) == frozenset()
    (tmp_path / MODELSLIM_FILE).write_text(text)
    with pytest.raises(InvalidInput, match=f"{MODELSLIM_FILE}: must be an object in JSON"):
        expert_formats(tmp_path)


@pytest.mark.parametrize(
    ("words", "nodes", "device"),
    [([], [], "cpu"), ([], ["/dev/davinci0"], "npu"), (["--device", "cpu"], ["/dev/davinci0"], "cpu")],
    ids=["a host", "a machine with NPUs", "a host that is asked for there"],
)
def test_a_device_that_is_left_out_is_the_npus_of_the_machine(monkeypatch, words: list[str], nodes, device: str):
    monkeypatch.setattr(asked_device, "ascend_device_nodes", lambda: nodes)
    given = given_flags.read([options.ASK_FLAG, "--quantization", "modelslim", *words])
    assert asked_device.device_of(given.settings) == device
    refused = outcome(given.settings, given.options).startswith("--quantization")
    assert refused == (device == "cpu")


@pytest.mark.parametrize(
    ("on_npu", "keys", "refused"),
    [(False, 64, True), (True, 64, False), (False, None, False)],
    ids=["sparse on a host", "sparse on an NPU", "dense on a host"],
)
def test_sparse_attention_is_refused_on_hosts(on_npu: bool, keys: int | None, refused: bool, monkeypatch):
    from sglang.srt.arg_groups import overrides

    from sglang_ascend_moe.serving.launcher import arguments

    config = SimpleNamespace(architectures=["DeepseekV32ForCausalLM"], index_topk=keys)
    monkeypatch.setattr(overrides, "model_config_of", lambda _: SimpleNamespace(hf_config=config))
    monkeypatch.setattr(overrides, "resolving_view", lambda server_args: server_args)
    monkeypatch.setattr(arguments.hooks, "on_npu", lambda: on_npu)
    expected = pytest.raises(Unsupported, match=r"of MODEL is sparse \(DSA\)") if refused else contextlib.nullcontext()
    with expected:
        arguments.refuse_attention(SimpleNamespace(model_path="MODEL"))
