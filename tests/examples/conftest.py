"""How the tests run a file of examples/."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.servers.server_process import can_be_interrupted
from sglang_ascend_moe.launch.tiny_model.tiny_model_command import main as write_tiny_model
from tests.packaging.source_tree import ROOT

Run = Callable[..., str]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What examples/README.md tells people without a checkpoint to write."""
    folder = tmp_path_factory.mktemp("model") / "tiny-moe"
    assert write_tiny_model([str(folder)]) == 0
    return str(folder)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in an empty folder, with the environment of the tests active, and returns what it printed.

    Fails with all that was said if the exit code is not 0.
    """

    def command(*words: str) -> str:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        # torchrun leaves a folder there.
        temporary = tmp_path / "t"
        temporary.mkdir(exist_ok=True)
        finished = subprocess.run(
            words, cwd=tmp_path, env={**os.environ, "PATH": path, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, preexec_fn=can_be_interrupted,
        )  # fmt: skip
        assert finished.returncode == 0, f"exit code {finished.returncode}\n{finished.stdout}{finished.stderr}"
        return finished.stdout

    return command


def example(name: str) -> str:
    """The path of a file of examples/."""
    return str(ROOT / "examples" / name)
