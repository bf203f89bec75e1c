"""Which processes are forked, and what becomes of an interrupt meanwhile. Each launcher under test is a new process."""

import subprocess
import sys
import textwrap

import pytest

LAUNCH = """
import multiprocessing, os, signal, time
from sglang_ascend_moe.platforms.process_start import launch_by_forking

# The tests may be a job in the background of a shell, which ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)

runs, says_so = os.pipe()

def sleep():
    os.write(says_so, b"1")
    time.sleep(300)

def launch(interrupted=False):
    global child
    child = multiprocessing.Process(target=sleep)
    method = multiprocessing.get_start_method()
    if interrupted:
        child.start()
        signal.raise_signal(signal.SIGINT)
    return method

"""
SITUATIONS = {
    "one-thread": ("", "fork"),
    "threads of OpenBLAS, which end before a fork": ("import numpy", "fork"),
    "a thread of Python": (
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "spawn",
    ),
    "threads of OpenMP, for which a child would wait": (
        "import torch; torch.set_num_threads(2); torch.mm(torch.ones(500, 500), torch.ones(500, 500))",
        "spawn",
    ),
}


def output_of(program: str) -> str:
    finished = subprocess.run([sys.executable, "-c", LAUNCH + program], capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize("situation", SITUATIONS)
def test_processes_are_forked_only_if_no_thread_would_be_missing(situation: str):
    program, expected = SITUATIONS[situation]
    rest = "print(launch_by_forking(launch), multiprocessing.get_start_method())"
    begin = "multiprocessing.set_start_method('spawn')"
    assert output_of(f"{program}\n{begin}\n{rest}").split() == [expected, "spawn"]


def test_an_interrupt_while_processes_are_started_is_raised_afterwards_and_children_heed_it():
    program = """
        try:
            launch_by_forking(launch, interrupted=True)
        except KeyboardInterrupt:
            print("interrupted")
        os.read(runs, 1)
        os.kill(child.pid, signal.SIGINT)
        child.join()
        print(child.exitcode)
        """
    assert set(output_of(textwrap.dedent(program)).split()) == {"interrupted", "1"}
