"""Help, versions and mistakes are answered at once: nothing heavy is imported before it is used."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE

HEAVY = ("torch", "sglang", "numpy", "transformers", "matplotlib", "safetensors")
CPU_SECONDS = 0.5
TRIES = 3
HELP = (
    "serve", "demo", "adopt", "disagg", "disagg up", "disagg check", "disagg render", "doctor", "bench",
    "bench exchange", "bench graphs", "bench serving", "bench report", "bench page", "build-kernels", "plan",
    "plan memory",
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
    "adopt: a command that starts no server": "adopt -- ls -l",
    "adopt: a flag": "adopt --jsn -- sglang serve",
    "adopt: a flag of the server": "adopt -- sglang serve --model-path m --tp-sizee 2",
    "disagg up: a flag": "disagg up --typo",
    "disagg up: no model": "disagg up",
    "disagg check: a flag": "disagg check --urk x",
    "disagg render: a file": "disagg render --target k8s --file no/such.toml",
    "bench exchange: a value": "bench exchange --dtype fp4",
    "bench serving: a value": "bench serving --rounds 0",
    "bench serving: a model that is not there": "bench serving --model-path ./no/such",
    "bench serving: a plot": "bench serving --plot times.gif",
    "bench graphs: a file that cannot be": "bench graphs --json no/such/run.json",
    "bench report: a file": "bench report no/such.json",
    "plan memory: no ranks": "plan memory --model .",
    "doctor: a flag": "doctor --hoks",
    "demo: a folder that cannot be made": "demo --keep /dev/null/x",
    "build-kernels: a value": "build-kernels --npu-arch a3",
}
RUN = f"""
import json, os, sys
from sglang_ascend_moe.launch.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
took = os.times()
loaded = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([code, took.user + took.system, loaded]))
"""


class Outcome(NamedTuple):
    """Exit code, CPU seconds with the start of Python, which of HEAVY is loaded, and what was said."""

    code: int
    cpu_seconds: float
    loaded: list[str]
    stdout: str
    stderr: str


def outcome_of(words: str, folder: Path) -> Outcome:
    """The quickest of a few tries: others use this machine."""
    outcomes = []
    for _ in range(TRIES):
        done = subprocess.run([sys.executable, "-c", RUN, *words.split()], cwd=folder, capture_output=True, text=True)
        *said, last = done.stdout.splitlines()
        outcomes.append(Outcome(*json.loads(last), "\n".join(said), done.stderr))
        if outcomes[-1].cpu_seconds < CPU_SECONDS:
            break
    return min(outcomes, key=lambda outcome: outcome.cpu_seconds)


@pytest.mark.parametrize("words", ["--help", "-h", "--version", *(f"{command} --help" for command in HELP)])
def test_help_and_version_load_nothing_heavy(words: str, tmp_path: Path):
    outcome = outcome_of(words, tmp_path)
    assert (outcome.code, outcome.loaded, outcome.stderr) == (OK, [], "")
    assert outcome.stdout
    assert outcome.cpu_seconds < CPU_SECONDS


@pytest.mark.parametrize("words", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_loads_nothing_heavy(words: str, tmp_path: Path):
    outcome = outcome_of(words, tmp_path)
    assert (outcome.code, outcome.loaded, outcome.stdout) == (WRONG_USAGE, [], "")
    assert len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert outcome.cpu_seconds < CPU_SECONDS


@pytest.mark.parametrize(
    ("words", "meant"),
    [("sreve", "serve"), ("doctor --hoks", "--hooks"), ("bench exchange --token 5 --toppk 3", "--topk")],
)
def test_what_was_probably_meant_is_said(words: str, meant: str, tmp_path: Path):
    assert f"; did you mean {meant}?" in outcome_of(words, tmp_path).stderr


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
