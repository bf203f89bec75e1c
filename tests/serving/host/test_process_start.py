"""Which processes are forked, and what becomes of an interrupt meanwhile. Each launcher under test is a new process."""

import subprocess
import sys
from pathlib import Path

import pytest

LAUNCH = """
import multiprocessing, os, signal, threading
from sglang_ascend_moe.serving.host.process_start import launch_by_forking

# The tests may be a job in the background of a shell, which ignores it.
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)

def answer(connection):
    while True:
        connection.send(connection.recv())

def launch(interrupted=False):
    method = multiprocessing.get_start_method()
    if interrupted:
        global child, connection
        connection, theirs = multiprocessing.Pipe()
        child = multiprocessing.Process(target=answer, args=(theirs,))
        child.start()
        signal.raise_signal(signal.SIGINT)
    return method
"""
SITUATIONS = {
    "one-thread": ("", "fork"),
    "threads of OpenBLAS, which end before a fork": ("import numpy", "fork"),
    "a thread of Python": (
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "spawn",
    ),
    "threads of OpenMP, for which a child would wait": (
        "import torch; torch.set_num_threads(2); torch.mm(torch.ones(500, 500), torch.ones(500, 500))",
        "spawn",
    ),
}
INTERRUPTED = """
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    SITUATION
    try:
        launch_by_forking(launch, interrupted=True)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    connection.send("runs")
    print(connection.recv(), flush=True)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(child.pid, number)
        connection.send(f"heeds no {number.name}")
        print(connection.recv(), flush=True)
    child.kill()
"""


def output_of(folder: Path, program: str) -> str:
    # A file, for processes that are spawned.
    (folder / "program.py").write_text(LAUNCH + program)
    command = [sys.executable, folder / "program.py"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


@pytest.mark.parametrize("situation", SITUATIONS)
def test_processes_are_forked_only_if_no_thread_would_be_missing(tmp_path: Path, situation: str):
    program, expected = SITUATIONS[situation]
    rest = "print(launch_by_forking(launch), multiprocessing.get_start_method())"
    begin = "multiprocessing.set_start_method('spawn')"
    assert output_of(tmp_path, f"{program}\n{begin}\n{rest}").split() == [expected, "spawn"]


@pytest.mark.parametrize("situation", ["one-thread", "a thread of Python"], ids=["forked", "spawned"])
def test_an_interrupt_while_processes_are_started_comes_afterwards_and_is_not_for_them(tmp_path: Path, situation: str):
    """Their launcher ends them. With other threads the kernel may give the signal to one of those."""
    program = INTERRUPTED.replace("SITUATION", SITUATIONS[situation][0] or "pass")
    said = ["interrupted", "runs", "heeds no SIGINT", "heeds no SIGTERM"]
    assert output_of(tmp_path, program).splitlines() == said
