"""An interrupt ends a command in one line, with what it has started; each command under test is a new process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import INTERRUPTED, OK

ENDINGS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
BEGIN = """
import os, signal, subprocess, sys, tempfile, threading
from pathlib import Path
from sglang_ascend_moe.serving.launcher import interrupts

def wait():
    # In one piece: others write there too.
    os.write(1, b"waits\\n")
    # In steps: a signal that comes after Python's last look at signals and before it sleeps does not wake it.
    while True:
        threading.Event().wait(0.01)
"""
# A shell that starts another program, and waits for it.
GRANDCHILD = "subprocess.Popen(['/bin/sh', '-c', 'sleep 300 & echo $! >&2; wait'], stderr=subprocess.PIPE, text=True)"
HELD = """
PRELUDE
with interrupts.watched("command"):
    with interrupts.held():
        print("waits", flush=True)
        while not (interrupts._watch.waiting or signal.sigpending() & set(interrupts.SIGNALS)):
            # Python calls handlers of a signal that another thread took when it takes its lock again.
            threading.Event().wait(0.01)
        print("goes on", flush=True)
    wait()
"""
PROGRAMS = {
    "in an import that swallows what is raised": """
with interrupts.watched("command"):
    while True:
        try:
            wait()
        except BaseException as error:
            print("swallowed", error, flush=True)
""",
    "while it is raised": """
with interrupts.watched("command"):
    try:
        with interrupts.raised():
            wait()
    except KeyboardInterrupt:
        sys.exit(interrupts.told())
""",
    "in a block in which it waits": HELD.replace("PRELUDE", ""),
    "in a block in which it waits, with a thread that could take it": HELD.replace(
        "PRELUDE", "threading.Thread(target=threading.Event().wait, daemon=True).start()"
    ),
}


class Command:
    """A program in a process group of its own, as a shell starts it."""

    def __init__(self, program: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", BEGIN + program], cwd=folder, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for(self, said: str) -> str:
        for line in self._process.stdout:
            if said in line:
                return line
        raise AssertionError(self._process.stderr.read())

    def interrupt(self, number: int) -> None:
        """As a terminal does: every process of the group gets the signal."""
        os.killpg(self._process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Exit code, and what else was said on stdout and stderr."""
        stdout, stderr = self._process.communicate(timeout=60)
        return self._process.returncode, stdout, stderr


@ENDINGS
@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_it_is_one_line_and_130(tmp_path: Path, program: str, number: int):
    command = Command(program, tmp_path)
    command.wait_for("waits")
    command.interrupt(number)
    code, stdout, stderr = command.end()
    assert (code, stderr) == (INTERRUPTED, "command: interrupted\n")
    assert stdout in ("", "goes on\n")


@ENDINGS
def test_everything_that_it_has_started_is_ended(tmp_path: Path, number: int):
    """Also what heeds no interrupt, and is the child of a child."""
    program = f"""
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
shell = {GRANDCHILD}
print("started", shell.pid, shell.stderr.readline().strip(), flush=True)
with interrupts.watched("command"):
    wait()
"""
    command = Command(program, tmp_path)
    _, *pids = command.wait_for("started").split()
    command.wait_for("waits")
    command.interrupt(number)
    assert command.end() == (INTERRUPTED, "", "command: interrupted\n")
    assert [pid for pid in pids if is_living(pid)] == []


def test_an_orphan_that_still_ends_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    shell, program = 2**22 + 1, 2**22 + 2  # past the largest number of a process
    seen = iter([{shell: os.getpid(), program: shell}, {program: 1}, {program: 1}, {1: 0}])
    monkeypatch.setattr(interrupts, "_parents_of_living", lambda: next(seen))
    interrupts.end_descendants()
    assert list(seen) == []


def is_living(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@ENDINGS
def test_what_has_to_be_put_away_is(tmp_path: Path, number: int):
    program = """
folder = Path("folder")
folder.mkdir()
interrupts.watch("command", folder.rmdir)
wait()
"""
    command = Command(program, tmp_path)
    command.wait_for("waits")
    assert (tmp_path / "folder").exists()
    command.interrupt(number)
    assert command.end() == (INTERRUPTED, "", "command: interrupted\n")
    assert not (tmp_path / "folder").exists()


def test_what_puts_away_is_not_interrupted_again(tmp_path: Path):
    program = """
with interrupts.watched("command"):
    try:
        with interrupts.raised():
            wait()
    except KeyboardInterrupt:
        print("puts away", flush=True)
        sys.stdin.readline()
        sys.exit(interrupts.told())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + program], cwd=tmp_path, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.readline() == "waits\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.readline() == "puts away\n"
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate("done\n", timeout=60) == ("", "command: interrupted\n")
    assert process.returncode == INTERRUPTED


def test_a_server_that_serves_is_stopped_and_ends_well(tmp_path: Path):
    program = """
with interrupts.watched("command"):
    interrupts.serve_from_now_on()
    try:
        wait()
    except KeyboardInterrupt:
        sys.exit(interrupts.told())
"""
    command = Command(program, tmp_path)
    command.wait_for("waits")
    command.interrupt(signal.SIGINT)
    assert command.end() == (OK, "", "command: stopped\n")


def test_processes_that_are_forked_say_nothing(tmp_path: Path):
    """Neither those that are ended by whoever forked them, nor those that are not."""
    program = """
def fork():
    child = os.fork()
    if child == 0:
        wait()
    return child

with interrupts.watched("command"):
    with interrupts.held():
        heedless = fork()
    heedful = fork()
    interrupts.ignore()
    os.write(1, b"forked\\n")
    for child in (heedful, heedless):
        if child == heedless:
            os.kill(child, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
    command = Command(program, tmp_path)
    assert sorted(command.wait_for("") for _ in range(3)) == ["forked\n", "waits\n", "waits\n"]
    command.interrupt(signal.SIGTERM)
    assert command.end() == (0, f"{-signal.SIGTERM}\n{-signal.SIGKILL}\n", "")


def test_a_command_that_is_called_by_another_program_leaves_its_signals_alone():
    from sglang_ascend_moe.serving.launcher import interrupts

    before = [signal.getsignal(number) for number in interrupts.SIGNALS]
    with interrupts.watched("command"):
        assert interrupts.command() == "command"
        with interrupts.watched("another"):
            assert interrupts.command() == "command"
        assert interrupts.command() == "command"
    assert interrupts.command() == ""
    assert [signal.getsignal(number) for number in interrupts.SIGNALS] == before
