"""Launchers whose ranks fail, as many of each kind as the command line says.

`python -m tests.serving.launcher.failing_together FOLDER KIND COUNT ...`

SGLang is imported once, with its plugins. Each launcher is forked from here and forks four processes in place of ranks:
they notice when another one dies, report and send SIGQUIT as SGLang's schedulers do, and the launcher handles that as
SGLang's does. Its output goes to a file in FOLDER. How each ended is printed, one line of JSON each.
"""

import os
import random
import select
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import msgspec

RANKS = 4
# In which ranks fail by themselves, so that signals come before, while and after the first one is handled.
WITHIN_SECONDS = 0.01
SHUT_DOWN = "shut down"
KINDS = ("one raises", "all raise", "one is killed", "one is killed without a title", SHUT_DOWN)
CULPRIT = 1


class Ended(msgspec.Struct, frozen=True):
    """How a launcher ended: its exit code as `subprocess.Popen.returncode`, its ranks' processes, its last line."""

    kind: str
    exit_code: int
    ranks: list[int]
    last: str


class Process:
    """What SGLang keeps of a process that it has started."""

    exitcode = None

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def is_alive(self) -> bool:
        return True


class Lifelines:
    """A pipe for each rank, which ends when that rank does."""

    def __init__(self) -> None:
        self._pipes = [os.pipe() for _ in range(RANKS)]

    def hold(self, mine: int | None) -> None:
        """Only rank `mine` keeps its own pipe open."""
        for rank, (_, writer) in enumerate(self._pipes):
            if rank != mine:
                os.close(writer)

    def wait_for_another(self, mine: int, seconds: float | None) -> bool:
        """Whether another rank has ended within so many seconds."""
        others = [reader for rank, (reader, _) in enumerate(self._pipes) if rank != mine]
        return bool(select.select(others, [], [], seconds)[0])

    def wait_for(self, rank: int) -> None:
        select.select([self._pipes[rank][0]], [], [])


def run_rank(kind: str, number: int, lifelines: Lifelines, launcher: int) -> NoReturn:
    """A rank, from its first moment to its last."""
    lifelines.hold(number)
    says_title = kind != "one is killed without a title"
    if says_title:
        take_title(number)
    fails = kind == "all raise" or (number == CULPRIT and kind != SHUT_DOWN)
    seconds = random.uniform(0, WITHIN_SECONDS) if fails else None
    if lifelines.wait_for_another(number, seconds):
        run_scheduler_process(ConnectionResetError("by another rank"))
    elif "killed" in kind:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        run_scheduler_process(ValueError(f"rank {number} failed"))
    os.kill(launcher, signal.SIGQUIT)
    os._exit(0)


def take_title(number: int) -> None:
    import setproctitle
    from sglang.srt.runtime_context import get_server_args

    from sglang_ascend_moe.serving.launcher import ending

    setproctitle.setproctitle(f"sglang::scheduler_TP{number}")
    ending.say_title(None, get_server_args())


def run_scheduler_process(error: Exception) -> None:
    """What SGLang's function of this name does when it catches `error`."""
    from sglang.utils import get_exception_traceback

    try:
        raise error
    except type(error):
        get_exception_traceback()


def fail_meanwhile(kind: str, lifelines: Lifelines, processes: list[Process]) -> None:
    """When SGLang begins to kill the ranks all of them fail, and their signals come in the middle of it."""
    import psutil

    list_children = psutil.Process.children

    def fail_first(*arguments: Any, **keywords: Any) -> Any:
        if kind == SHUT_DOWN:
            os.kill(processes[CULPRIT].pid, signal.SIGKILL)
        for rank in range(RANKS):
            lifelines.wait_for(rank)
        return list_children(*arguments, **keywords)

    psutil.Process.children = fail_first


def launch(kind: str, pids: int) -> None:
    """A launcher, as `sglang.Engine` is one; writes the ranks' processes to `pids`."""
    from sglang.srt import runtime_context
    from sglang.srt.utils import kill_process_tree

    from sglang_ascend_moe.serving.launcher import ending
    from sglang_ascend_moe.serving.options import Options, attach

    server_args = SimpleNamespace(nnodes=1)
    attach(server_args, Options())
    runtime_context.get_server_args = lambda: server_args
    ending.make_room_for_reports(object, server_args)
    signal.signal(signal.SIGQUIT, lambda *_: kill_process_tree(os.getpid()))
    # As SGLang's loop may find it: signals come when everything is known.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGQUIT])
    lifelines, launcher = Lifelines(), os.getpid()
    processes = []
    for number in range(RANKS):
        pid = os.fork()
        if pid == 0:
            run_rank(kind, number, lifelines, launcher)
        processes.append(Process(pid))
    lifelines.hold(None)
    ending.keep_schedulers((None, processes), object, server_args)
    fail_meanwhile(kind, lifelines, processes)
    os.write(pids, msgspec.json.encode([process.pid for process in processes]))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGQUIT])
    while kind != SHUT_DOWN:
        signal.pause()
    kill_process_tree(launcher, include_parent=False)
    print(SHUT_DOWN, flush=True)


def end(kind: str, log: Path) -> Ended:
    """Run a launcher to its end."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        launch(kind, writer)
        os._exit(0)
    os.close(writer)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    ranks = msgspec.json.decode(os.read(reader, 1 << 16), type=list[int])
    os.close(reader)
    return Ended(kind, code, ranks, log.read_text().splitlines()[-1])


def main(folder: str, *counts: str) -> None:
    from sglang.srt.plugins import load_plugins
    from sglang.srt.utils import common  # noqa: F401

    load_plugins()
    for kind, count in zip(counts[::2], counts[1::2], strict=True):
        for number in range(int(count)):
            ended = end(kind, Path(folder, f"{kind} {number}.log"))
            print(msgspec.json.encode(ended).decode(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
