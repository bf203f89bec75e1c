"""Commands as people type them, interrupted or failing at any moment: what they say last, and what they leave behind.

An interrupt goes to the whole process group, as a terminal sends it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest

from sglang_ascend_moe.launch.servers.server_process import free_port, group_members
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, INTERRUPTED, OK, WRONG_USAGE
from tests.serving.leftovers import NOTHING
from tests.serving.titled_processes import titled

POLL_SECONDS = 0.02
BEGIN_SECONDS = 240.0
END_SECONDS = 60.0
NIGHTLY = pytest.mark.nightly
ATTENTION = {"tp": [], "dp-attention": ["--dp-size", "2", "--enable-dp-attention"]}

pytestmark = pytest.mark.timeout(600)


class Command:
    """`ascend-moe` with arguments, its output in files. A context manager that ends what is left of it."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._command = [sys.executable, "-m", "sglang_ascend_moe.launch.main", *arguments]
        self._out, self._err = folder / "out", folder / "err"

    def __enter__(self) -> Self:
        with self._out.open("w") as out, self._err.open("w") as err:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def said(self) -> str:
        return self._out.read_text(errors="replace") + self._err.read_text(errors="replace")

    @property
    def errors(self) -> list[str]:
        return self._err.read_text(errors="replace").splitlines()

    def wait_until(self, reached: Callable[[Command], bool]) -> None:
        for _ in range(int(BEGIN_SECONDS / POLL_SECONDS)):
            if reached(self):
                return
            assert self._process.poll() is None, self.said
            threading.Event().wait(POLL_SECONDS)
        raise AssertionError(self.said)

    def interrupt(self, number: int) -> None:
        os.killpg(self.pid, number)

    def end(self) -> int:
        return self._process.wait(END_SECONDS)


def says(words: str) -> Callable[[Command], bool]:
    return lambda command: words in command.said


def imports(library: str) -> Callable[[Command], bool]:
    """Whether the program has begun to import what brings this library."""
    return lambda command: library in Path(f"/proc/{command.pid}/maps").read_text()


def ranks(command: Command, part: str = "") -> list[int]:
    """The processes whose title is that of a rank, with `part` in it."""
    return titled(command.pid, "sglang::scheduler", part)


def has_rank(command: Command) -> bool:
    return bool(ranks(command))


MOMENTS: dict[str, Callable[[Command], bool]] = {
    "torch is imported": imports("libtorch_cpu"),
    "SGLang is imported": imports("/_zmq."),
    "the first rank is there": has_rank,
    "ranks connect": says("Init parallel begin"),
    "weights are loaded": says("Load weight begin"),
    "memory is allocated": says("Memory pool end"),
}


@pytest.fixture
def serve(checkpoint: Path) -> list[str]:
    return ["serve", str(checkpoint), "--tp-size", "2", "--port", str(free_port()), "--max-running-requests", "8"]


SHORT = [("torch is imported", signal.SIGINT), ("weights are loaded", signal.SIGTERM)]


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(moment, number, id=f"{moment}-{number.name}", marks=() if (moment, number) in SHORT else NIGHTLY)
        for moment in MOMENTS
        for number in (signal.SIGINT, signal.SIGTERM)
    ],
)
def test_a_server_that_is_interrupted_while_it_starts_says_so_and_leaves_nothing(
    surroundings, serve, tmp_path, moment, number
):
    with Command(serve, tmp_path) as command:
        command.wait_until(MOMENTS[moment])
        command.interrupt(number)
        assert command.end() == INTERRUPTED, command.said
        # A rank may have shown how far it is, and not ended the line.
        assert command.errors[-1].endswith("ascend-moe serve: interrupted")
        assert "Traceback" not in command.said
        assert group_members(command.pid) == []
    assert surroundings.leftovers() == NOTHING


@NIGHTLY
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_server_that_is_stopped_while_it_serves_has_ended_well(surroundings, serve, tmp_path, attention, number):
    with Command([*serve, *ATTENTION[attention]], tmp_path) as command:
        command.wait_until(says("The server is fired up"))
        command.interrupt(number)
        assert command.end() == OK, command.said
        assert command.errors[-1] == "ascend-moe serve: stopped"
        assert "Traceback" not in command.said
        assert group_members(command.pid) == []
    assert surroundings.leftovers() == NOTHING


COMMANDS: dict[str, tuple[str, Callable[[Command], bool]]] = {
    "doctor, torch": ("doctor", imports("libtorch_cpu")),
    "doctor, SGLang": ("doctor", imports("/_zmq.")),
    "demo, torch": ("demo", imports("libtorch_cpu")),
    "disagg up, SGLang": ("disagg up --model-path MODEL --port 0", says("importing SGLang")),
    "bench exchange, ranks": ("bench exchange --preset paper-decode", says("[1/")),
    "bench exchange, start": ("bench exchange --ranks 2", lambda command: len(group_of(command)) > 1),
    "bench graphs, torch": ("bench graphs", imports("libtorch_cpu")),
    "bench serving, server": ("bench serving --against stock --rounds 1", says("round 1 of 1")),
}
PROGRESS = re.compile(r"\[\d+/")
SHORT_COMMANDS = ("doctor, torch", "disagg up, SGLang", "bench exchange, ranks")


def group_of(command: Command) -> list[int]:
    """The processes of a command and those that it has started, which are in groups of their own."""
    return [int(pid) for pid in Path(f"/proc/{command.pid}/task/{command.pid}/children").read_text().split()] + [
        command.pid
    ]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in SHORT_COMMANDS else NIGHTLY) for name in COMMANDS],
)
def test_every_command_that_is_interrupted_says_so_in_one_line(surroundings, checkpoint, tmp_path, name):
    words, moment = COMMANDS[name]
    with Command([word.replace("MODEL", str(checkpoint)) for word in words.split()], tmp_path) as command:
        command.wait_until(moment)
        command.interrupt(signal.SIGINT)
        assert command.end() == INTERRUPTED, command.said
        [said] = [line for line in command.errors if not PROGRESS.match(line)]
        assert said.startswith(f"ascend-moe {name.partition(',')[0]}: interrupted")
        assert "Traceback" not in command.said
    assert surroundings.leftovers() == NOTHING


@pytest.mark.parametrize(
    ("attention", "rank", "moment"),
    [
        pytest.param("tp", 1, "weights are loaded"),
        pytest.param("tp", 0, "ranks connect", marks=NIGHTLY),
        pytest.param("tp", 1, "memory is allocated", marks=NIGHTLY),
        pytest.param("dp-attention", 0, "ranks connect", marks=NIGHTLY),
        pytest.param("dp-attention", 1, "weights are loaded", marks=NIGHTLY),
    ],
)
def test_a_rank_that_is_killed_while_a_server_starts_is_named(surroundings, serve, tmp_path, attention, rank, moment):
    with Command([*serve, *ATTENTION[attention]], tmp_path) as command:
        # The other rank may be there first.
        command.wait_until(lambda command: MOMENTS[moment](command) and ranks(command, f"TP{rank}") != [])
        [victim] = ranks(command, f"TP{rank}")
        os.kill(victim, signal.SIGKILL)
        assert command.end() == CHECK_FAILED, command.said
        # A rank may have shown how far it is, and not ended the line.
        cause = command.errors[-1].rpartition("The server ends: ")[2]
        assert cause.startswith("sglang::scheduler_")
        assert cause.endswith(f"TP{rank}_EP{rank} (process {victim}) was killed, or crashed")
        assert group_members(command.pid) == []
    assert surroundings.leftovers() == NOTHING


REFUSED_BY_RANKS = {
    "--ascend-moe-max-tokens 4": "InvalidInput: --ascend-moe-max-tokens 4",
    "--ascend-moe-window-bytes 70000": "WindowTooSmall: --ascend-moe-window-bytes 70000",
}


@NIGHTLY
@pytest.mark.parametrize("time", range(5))
@pytest.mark.parametrize("words", REFUSED_BY_RANKS)
def test_what_all_ranks_refuse_together_ends_a_server_by_name(surroundings, serve, tmp_path, words, time):
    del time
    with Command([*serve, *words.split()], tmp_path) as command:
        code = command._process.wait(BEGIN_SECONDS)
        assert code == CHECK_FAILED, command.said
        assert command.errors[-1].startswith("The server ends: sglang::scheduler_TP")
        assert f"raised {REFUSED_BY_RANKS[words]}" in command.errors[-1]
    assert surroundings.leftovers() == NOTHING


@NIGHTLY
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sglang.launch_server --model-path MODEL --ascend-moe --ascend-moe-quant int4", "--ascend-moe-quant 'int4': "),
        ("sglang.cli.main serve MODEL --ascend-moe --tp-size 3 --device cpu", "--ep-size 3: 16 experts cannot be"),
        (
            "sglang.launch_server --model-path MODEL --ascend-moe --dcp-size 2 --device cpu",
            "--dcp-size 2 does not work with --ascend-moe",
        ),
        (
            "sglang.cli.main serve MODEL --ascend-moe --ascend-moe-timeout 0",
            "--ascend-moe-timeout 0.0: must be above 0",
        ),
    ],
    ids=["a value", "the model, sglang serve", "a conflict", "a value, sglang serve"],
)
def test_commands_of_sglang_refuse_in_one_line_too(checkpoint, words, said):
    module, *arguments = words.replace("MODEL", str(checkpoint)).split()
    run = f"import sys; sys.argv[0] = 'sglang'; from {module} import main; main()"
    command = ["-m", module] if module == "sglang.launch_server" else ["-c", run]
    done = subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True, timeout=500)
    assert done.returncode == WRONG_USAGE, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("sglang serve: ")]
    assert line.startswith(f"sglang serve: {said}")
    assert "Traceback" not in done.stderr
