"""`render` writes nothing that serving refuses, and names the key to change; what it writes SGLang takes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.disagg import disagg_command
from sglang_ascend_moe.launch.disagg.deployment import DECIDED, read_deployment
from sglang_ascend_moe.launch.disagg.render import TARGETS
from sglang_ascend_moe.launch.disagg.server_flags import NodePlace, server_flags
from sglang_ascend_moe.launch.plan.moe_config import MODELOPT_FILE, MODELSLIM_FILE
from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes, write_checkpoint
from sglang_ascend_moe.serving.launcher.conflicts import CONFLICTS
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE
from sglang_ascend_moe.serving.launcher.given_flags import FLAGS_OF_PLUGINS, known_flags
from sglang_ascend_moe.serving.launcher.replaced_settings import A2A_BACKEND
from tests.launch.disagg.test_render import CONFIGS, DEPLOYMENTS, command_lines, rendered, value
from tests.packaging.source_tree import ROOT
from tests.serving.launcher.test_conflicts import SETTINGS

EXAMPLE = ROOT / "launch" / "examples" / "a3_1p1d.toml"
MOST_RANKS = 64


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of the example's model."""
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(CONFIGS["qwen3-moe"]))
    return path


class Refused:
    """Renders the example with some lines of its prefill role replaced, and returns what is said."""

    def __init__(self, folder: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._config, self._capsys = folder, config, capsys

    def __call__(self, old: str, new: str, *, code: int = WRONG_USAGE) -> str:
        text = EXAMPLE.read_text()
        assert old in text
        file = self._folder / "deployment.toml"
        file.write_text(text.replace(old, new, 1))
        command = ["render", "--target", "shell", "--file", str(file), "--model-config", str(self._config)]
        assert disagg_command.main(command) == code
        captured = self._capsys.readouterr()
        if code != OK:
            assert captured.out == ""
            assert captured.err.count("\n") == 1
        return captured.err.replace(str(file), "FILE")


@pytest.fixture
def refused(tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(tmp_path, config, capsys)


def as_toml(content: object) -> str:
    """A value of `options`; a flag that takes several is given one."""
    return json.dumps(content[0] if isinstance(content, list) else content)


OPTIONS = "options = { mem-fraction-static = 0.75 }"


# What depends on the checkpoint too, or on two keys.
BESIDES = {"--quantization", "--pp-size", "--enable-eplb"}


@pytest.mark.parametrize("flag", [flag for flag in SETTINGS if flag not in BESIDES])
def test_every_conflict_is_refused_by_its_key(refused: Refused, flag: str):
    options = {name.replace("_", "-"): content for name, content in SETTINGS[flag].items()}
    options = {name: content for name, content in options.items() if name not in DECIDED}
    shown = ", ".join(f"{name} = {as_toml(content)}" for name, content in options.items())
    said = refused(OPTIONS, f"options = {{ {shown} }}")
    assert said.startswith("ascend-moe disagg render: --file FILE cannot be served: prefill.options." + flag[2:])
    (conflict,) = (conflict for conflict in CONFLICTS if conflict.flag == flag)
    assert conflict.cause in said


REFUSED = {
    "another spelling": (
        OPTIONS, "options = { decode-context-parallel-size = 2 }",
        "FILE cannot be served: prefill.options.decode-context-parallel-size 2 does not work with --ascend-moe",
    ),
    "another backend": (
        OPTIONS, 'options = { moe-a2a-backend = "mori" }',
        "FILE cannot be served: prefill.options.moe-a2a-backend mori: --ascend-moe is such a backend itself",
    ),
    "fewer expert ranks": (
        OPTIONS, "options = { ep-size = 4 }",
        "FILE cannot be served: prefill.options.ep-size 4 with prefill.tp_size 16: the exchange spans",
    ),
    "quantised when loaded": (
        OPTIONS, 'options = { quantization = "fp8" }',
        "model_path /models/Qwen3-235B-A22B with prefill.options.quantization is quantised (fp8)",
    ),
    "experts": (
        "tp_size = 16", "tp_size = 12",
        "FILE cannot be served: prefill.tp_size 12: 128 experts cannot be divided among so many ranks, which hold"
        " equally many each; choose a prefill.tp_size that divides 128, or prefill.options.ep-num-redundant-experts 4",
    ),
    "checksums": (
        OPTIONS, "options = { ascend-moe-verify = true }",
        "FILE cannot be served: prefill.options.ascend-moe-verify: the Ascend kernels make no checksums",
    ),
    "the baseline": (
        OPTIONS, 'options = { ascend-moe-schedule = "collective" }',
        "FILE cannot be served: prefill.options.ascend-moe-schedule collective: the baseline moves tensors of the host",
    ),
    "no choice of an option": (
        OPTIONS, 'options = { ascend-moe-quant = "int4" }',
        "FILE cannot be served: prefill.options.ascend-moe-quant 'int4': choose one of none, int8",
    ),
    "no number": (
        OPTIONS, 'options = { ep-size = "many" }',
        "FILE cannot be served: prefill.options.ep-size: invalid int value: 'many'",
    ),
    "too few tokens": (
        OPTIONS, "options = { ascend-moe-max-tokens = 1023 }",
        "FILE cannot be served: prefill.options.ascend-moe-max-tokens 1023: the largest prefill batch of 16384 tokens"
        " brings 1024 to each of 16 ranks. Raise it to 1024 or lower prefill.chunked_prefill_size to 16368",
    ),
    "a secret of one machine": (
        "[prefill]", 'secret_file = "secret"\n[prefill]', "disagg render: secret_file secret: give the whole path",
    ),
    "a small window": (
        "chunked_prefill_size = 16384", "window_bytes = 4096",
        "FILE cannot be served: prefill.window_bytes 4096: the largest decode batch brings 1 tokens per rank",
    ),
    "a typo": (
        OPTIONS, "options = { mem-fraction-statics = 0.75 }",
        "FILE: prefill.options.mem-fraction-statics: the SGLang that is installed here has no flag"
        " --mem-fraction-statics; did you mean --mem-fraction-static?",
    ),
    "an abbreviation": (
        OPTIONS, "options = { nnode = 2 }",
        "FILE: prefill.options.nnode: the SGLang that is installed here has no flag --nnode; did you mean --nnodes?",
    ),
    "a file of flags": (
        OPTIONS, 'options = { config = "flags.yaml" }',
        "FILE: prefill.options.config: what that file sets is not seen here",
    ),
    "what the deployment decides, in another spelling": (
        OPTIONS, "options = { tensor-parallel-size = 4 }",
        "FILE: prefill.options.tensor-parallel-size: set by the deployment itself (tp_size)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "said"), REFUSED.values(), ids=REFUSED)
def test_what_serving_refuses_is_not_rendered_and_the_key_is_named(refused: Refused, old: str, new: str, said: str):
    assert said in refused(old, new)


@pytest.mark.parametrize(
    "options",
    [
        "ascend-moe-max-tokens = 1024",
        "ep-size = 16",
        "ep-num-redundant-experts = 16",
        'quantization = "modelslim"',
        'ascend-moe-quant = "int8"',
        "page-size = 128",
    ],
)
def test_what_serving_takes_is_rendered(refused: Refused, options: str):
    refused(OPTIONS, f"options = {{ {options} }}", code=OK)


@pytest.mark.parametrize(
    ("changed", "beside", "said"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "is quantised (fp8)"),
        ({"compression_config": {"quant_method": "gptq"}}, {}, "is quantised (gptq)"),
        ({}, {MODELOPT_FILE: {"quantization": {"quant_algo": "NVFP4"}}}, "is quantised (modelopt)"),
        ({"num_experts": None}, {}, "is not a mixture-of-experts model"),
        ({"hidden_size": 4104}, {}, "have 4104 elements (hidden_size)"),
    ],
    ids=["fp8", "gptq", "modelopt", "dense", "rows"],
)
def test_a_model_that_is_not_served_is_refused_by_the_key_of_its_path(
    refused: Refused, config: Path, changed: dict, beside: dict, said: str
):
    config.write_text(json.dumps(CONFIGS["qwen3-moe"] | changed))
    for name, content in beside.items():
        (config.parent / name).write_text(json.dumps(content))
    told = refused("", "")
    assert "model_path /models/Qwen3-235B-A22B" in told
    assert said in told


def test_w8a8_weights_are_rendered(refused: Refused, config: Path):
    (config.parent / MODELSLIM_FILE).write_text("{}")
    refused("", "", code=OK)


@pytest.mark.parametrize("given", [True, False], ids=["--model-config", "model_path"])
def test_a_config_that_is_not_there_is_named_by_the_flag_or_key_that_exists(
    given: bool, capsys: pytest.CaptureFixture[str]
):
    command = ["render", "--target", "shell", "--file", str(EXAMPLE)]
    assert disagg_command.main([*command, *(["--model-config", "/no/such/model"] if given else [])]) == WRONG_USAGE
    said = capsys.readouterr().err
    expected = "--model-config /no/such/model" if given else "--model-config is not given, and model_path /models/Qwen3"
    assert said.startswith(f"ascend-moe disagg render: {expected}")


def test_a_folder_that_cannot_be_made_is_wrong_usage(config: Path, capsys: pytest.CaptureFixture[str]):
    command = ["render", "--target", "shell", "--file", str(EXAMPLE), "--model-config", str(config)]
    assert disagg_command.main([*command, "--output", str(config)]) == WRONG_USAGE
    assert capsys.readouterr().err == f"ascend-moe disagg render: --output {config}: File exists; give a folder\n"


def in_sglang(commands: list[list[str]]) -> dict[str, list]:
    """What SGLang with the package says of command lines; see `resolving`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.launch.disagg.resolving"], input=json.dumps(commands), capture_output=True,
        text=True, cwd=ROOT, env={**os.environ, "SGLANG_PLUGINS": "ascend_moe,ascend_moe_host"}, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def commands_of_every_deployment(folder: Path) -> dict[str, list[list[str]]]:
    """Deployment -> arguments of its servers, with a tiny model and a secret that are there in place of its own."""
    models = {
        "qwen3-moe": write_checkpoint(folder / "qwen3-moe", "qwen3_moe"),
        "deepseek-v3": write_checkpoint(
            folder / "deepseek-v3", "deepseek_v3", TinySizes(experts=MOST_RANKS, max_positions=8192)
        ),
    }
    (models["deepseek-v3"] / MODELSLIM_FILE).write_text("{}")
    models["deepseek-r1"] = models["deepseek-v3"]
    one_host = read_deployment(ROOT / "launch" / "examples" / "one_host.toml")
    found = {"one_host": [server_flags(one_host, role, "host", NodePlace(8998)) for role in one_host.roles]}
    for name, target in itertools.product(DEPLOYMENTS, TARGETS):
        below = folder / f"{name} {target}"
        below.mkdir()
        commands = command_lines(rendered(DEPLOYMENTS[name], target, below))
        servers = [command[3:] for command in commands if command[2] == "sglang.launch_server"]
        filled = [[word.replace("$(LWS_WORKER_INDEX)", "1") for word in words] for words in servers]
        found[name] = [*found.get(name, []), *filled]
    secret = folder / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o600)
    here: dict[str | None, Path] = {one_host.model_path: models["qwen3-moe"]}
    for deployment in DEPLOYMENTS.values():
        here |= {deployment.model_path: models[deployment.name], deployment.secret_file: secret}
    return {name: [[str(here.get(word, word)) for word in words] for words in found[name]] for name in found}


def test_sglang_takes_every_command_of_every_example_and_serves_it_with_the_exchange(tmp_path: Path):
    commands = commands_of_every_deployment(tmp_path)
    found = in_sglang(list(itertools.chain.from_iterable(commands.values())))
    assert set(found["flags"]) - {"-h", "--help"} == known_flags() - set(FLAGS_OF_PLUGINS)
    names = itertools.chain.from_iterable([name] * len(commands[name]) for name in commands)
    for name, words, outcome in zip(names, itertools.chain(*commands.values()), found["outcomes"], strict=True):
        assert outcome["refused"] is None, words
        assert outcome["backend"] == A2A_BACKEND
        if name != "one_host":
            assert outcome["tokens"] == int(value(words, "--ascend-moe-max-tokens"))
