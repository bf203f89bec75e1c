"""Runs one verification of a Promela model: spin writes the verifier, gcc builds it, it visits every state."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

MODEL = Path(__file__).parent
SOURCES = sorted(MODEL.glob("*.pml"))
LONGEST_PATH = 5_000_000  # steps; a longer one makes the verification incomplete


class Verdict(NamedTuple):
    """What the verifier found: how many errors (it stops at the first), that one in its words, how many states, and
    whether it has seen all of them."""

    errors: int
    reason: str
    states: int
    complete: bool


def verify(model: str, switches: tuple[str, ...], folder: Path, *, optimised: bool = False) -> Verdict:
    """Verifies the file `model` with -D `switches`, working in `folder`. `optimised` pays for many states."""
    for program in ("spin", "gcc"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} was not found; install it with `make system-packages` (Debian package: {program})")
    for source in SOURCES:
        shutil.copy(source, folder)
    run(["spin", "-a", *(f"-D{switch}" for switch in switches), model], folder)
    run(
        ["gcc", "-O1" if optimised else "-O0", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=3500", "-o", "pan", "pan.c"],
        folder,
    )
    output = run(["./pan", f"-m{LONGEST_PATH}"], folder)
    errors = re.search(r"errors: (\d+)", output)
    states = re.search(r"(\d+) states, stored", output)
    if errors is None or states is None:
        pytest.fail(f"the verifier did not come to an end:\n{output}")
    reason = re.search(r"pan:\d+: (.*) \(at depth", output)
    complete = "max search depth too small" not in output and "Search not completed" not in output
    return Verdict(int(errors[1]), reason[1] if reason else "", int(states[1]), complete)


def run(command: list[str], folder: Path) -> str:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.fail(f"{' '.join(command)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr
