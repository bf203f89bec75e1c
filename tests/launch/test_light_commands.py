"""Help, versions and mistakes are answered at once: nothing heavy is imported before it is used."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sglang_ascend_moe.launch.main import NOBODY_READS
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK, WRONG_USAGE

HEAVY = ("torch", "sglang", "numpy", "transformers", "matplotlib", "safetensors")
MOST_MODULES = 400
"""What half a second of a core imports."""
HELP = (
    "serve", "demo", "adopt", "disagg", "disagg up", "disagg check", "disagg render", "doctor", "top", "trace",
    "monitoring", "bench", "bench exchange", "bench graphs", "bench serving", "bench products", "bench report",
    "bench page", "build-kernels", "plan", "plan memory", "plan schedule", "plan calibrate", "plan check",
)  # fmt: skip
MISTAKES = {
    "no command": "",
    "a command that is none": "sreve",
    "a subcommand that is none": "bench exchagne",
    "serve: a flag": "serve . --tp-sizee 2",
    "serve: a value of ours": "serve . --ascend-moe-quant int4",
    "serve: no model": "serve --tp-size 2",
    "serve: a model that is not there": "serve ./no/such/model",
    "serve: a folder that is no model": "serve /dev",
    "adopt: nothing": "adopt",
    "adopt: no flags": "adopt -- sglang serve",
    "adopt: a command that starts no server": "adopt -- ls -l",
    "adopt: a flag": "adopt --jsn -- sglang serve",
    "adopt: a flag of the server": "adopt -- sglang serve --model-path m --tp-sizee 2",
    "disagg up: a flag": "disagg up --typo",
    "disagg up: no model": "disagg up",
    "disagg check: a flag": "disagg check --urk x",
    "disagg check: an address": "disagg check --url localhost:8000 --record answers.json",
    "disagg check: a folder": "disagg check --url http://localhost:1 --record no/such/answers.json",
    "disagg render: a file": "disagg render --target k8s --file no/such.toml",
    "bench exchange: a value": "bench exchange --dtype fp4",
    "bench serving: a value": "bench serving --rounds 0",
    "bench serving: a model that is not there": "bench serving --model-path ./no/such",
    "bench serving: a plot": "bench serving --plot times.gif",
    "bench products: a value": "bench products --rows 0",
    "bench graphs: a file that cannot be": "bench graphs --json no/such/run.json",
    "bench report: a file": "bench report no/such.json",
    "plan memory: no ranks": "plan memory --model .",
    "plan schedule: no model": "plan schedule --npus 8",
    "plan schedule: a model that is not there": "plan schedule --npus 8 --model no/such",
    "plan calibrate: no file": "plan calibrate",
    "plan check: a machine that is not there": "plan check --machine no/such.json",
    "doctor: a flag": "doctor --hoks",
    "doctor: an address": "doctor --url localhost",
    "doctor: an address without host": "doctor --url http://",
    "doctor: a port": "doctor --url http://localhost:port",
    "top: an address": "top --url localhost",
    "top: an interval": "top --interval 0",
    "trace: no folder": "trace",
    "monitoring: no folder": "monitoring",
    "monitoring: a folder that cannot be made": "monitoring /dev/null/x",
    "demo: a folder that cannot be made": "demo --keep /dev/null/x",
    "build-kernels: a value": "build-kernels --npu-arch a3",
}
TINY_MODEL = "sglang_ascend_moe.launch.tiny_model.tiny_model_command"
"""README tells to type `python -m sglang_ascend_moe.launch.tiny_model`."""
RUN = f"""
import importlib, json, sys
main = importlib.import_module(sys.argv.pop(1)).main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
loaded = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([code, len(sys.modules), loaded]))
"""


class Outcome(NamedTuple):
    """Exit code, how many modules are loaded and which of HEAVY, and what was said."""

    code: int
    modules: int
    loaded: list[str]
    stdout: str
    stderr: str


def outcome_of(words: str, folder: Path, module: str = "sglang_ascend_moe.launch.main") -> Outcome:
    command = [sys.executable, "-c", RUN, module, *words.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    *said, last = done.stdout.splitlines()
    return Outcome(*json.loads(last), "\n".join(said), done.stderr)


@pytest.mark.parametrize("words", ["--help", "-h", "--version", *(f"{command} --help" for command in HELP)])
def test_help_and_version_load_nothing_heavy(words: str, tmp_path: Path):
    outcome = outcome_of(words, tmp_path)
    assert (outcome.code, outcome.loaded, outcome.stderr) == (OK, [], "")
    assert outcome.stdout
    assert outcome.modules < MOST_MODULES


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_loads_nothing_heavy(words: str, tmp_path: Path):
    outcome = outcome_of(words, tmp_path)
    assert (outcome.code, outcome.loaded, outcome.stdout) == (WRONG_USAGE, [], "")
    assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert outcome.modules < MOST_MODULES


def test_help_of_the_tiny_model_loads_nothing_heavy(tmp_path: Path):
    outcome = outcome_of("--help", tmp_path, TINY_MODEL)
    assert (outcome.code, outcome.loaded, outcome.stderr) == (OK, [], "")
    assert outcome.stdout


@pytest.mark.parametrize(
    "words",
    ["", "MODEL --famly qwen3_moe", "MODEL --family qwen9", "/dev/null", "/dev/null/x"],
    ids=["no folder", "a flag", "a family", "a file", "a folder that cannot be made"],
)
def test_a_mistake_with_the_tiny_model_is_one_line_and_loads_nothing_heavy(words: str, tmp_path: Path):
    outcome = outcome_of(words, tmp_path, TINY_MODEL)
    assert (outcome.code, outcome.loaded, outcome.stdout) == (WRONG_USAGE, [], "")
    assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "meant"),
    [("sreve", "serve"), ("doctor --hoks", "--hooks"), ("bench exchange --token 5 --toppk 3", "--topk")],
)
def test_what_was_probably_meant_is_said(words: str, meant: str, tmp_path: Path):
    assert f"; did you mean {meant}?" in outcome_of(words, tmp_path).stderr


@pytest.mark.parametrize("words", ["plan memory --ranks 2 --max-tokens 1 --tp-size 4", "plan compare --model M"])
def test_what_is_like_nothing_is_given_no_meaning(words: str, tmp_path: Path):
    assert "did you mean" not in outcome_of(words, tmp_path).stderr


def test_a_server_that_does_not_answer_is_told_without_torch(tmp_path: Path):
    outcome = outcome_of("doctor --url http://127.0.0.1:1", tmp_path)
    assert (outcome.code, outcome.loaded) == (CHECK_FAILED, [])


def test_a_command_whose_reader_has_what_it_wants_ends_quietly(tmp_path: Path):
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sglang_ascend_moe.launch.main", "plan", "compare"]
    done = subprocess.run(command, cwd=tmp_path, stdout=written, stderr=subprocess.PIPE, text=True)
    os.close(written)
    assert (done.returncode, done.stderr) == (NOBODY_READS, "")


def test_importing_the_package_loads_nothing_heavy_until_the_exchange_is_asked_for(tmp_path: Path):
    program = f"""
import sys, sglang_ascend_moe as package
print([name for name in {HEAVY} if name in sys.modules], sorted(set(package.__all__) - set(dir(package))))
from sglang_ascend_moe import Exchange, ExpertRows
print(Exchange.__name__, ExpertRows.__name__, "torch" in sys.modules, "sglang" in sys.modules)
print(hasattr(package, "nothing"))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[] []", "Exchange ExpertRows True False", "False"], done.stderr
