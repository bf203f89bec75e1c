"""The processes of one engine as their launcher sees them: what each reported, and which ranks are gone or stopped."""

import contextlib
import os
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import msgspec

STOPPED_CHECKS = 10
"""Checks, one a second, for which a rank may be stopped (SIGSTOP). Counted, so that a stop of all does not matter."""
SCHEDULER_TITLE = "sglang::scheduler"


class Report(msgspec.Struct, frozen=True):
    """What ended a process: its title and id, the exception, and whether that blames another process."""

    title: str
    process: int
    error: str
    blames_peer: bool


class Watched:
    """A rank as the launcher sees it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.checks_stopped = 0
        self.fault = ""


class Finding(NamedTuple):
    """A rank that has ended or stopped, in words."""

    process: int
    fault: str


class EngineProcesses:
    """The processes of one engine as their launcher sees them: what they reported, and which ranks are gone."""

    def __init__(self) -> None:
        self.processes: Sequence[BaseProcess] = ()
        """What SGLang started for this engine; its ranks are among them, or their children."""
        self._watched: dict[int, Watched] = {}
        self._memory = os.memfd_create("what ended processes")
        self.path = f"/proc/{os.getpid()}/fd/{self._memory}"

    def close(self) -> None:
        os.close(self._memory)

    def has_ended(self) -> bool:
        return bool(self.processes) and not any(process.is_alive() for process in self.processes)

    def is_watched_by(self, watchdog: Any) -> bool:
        return any(process in watchdog._processes for process in self.processes)

    def find_ranks(self) -> None:
        """Once: those that are there are watched from now on."""
        if not self._watched:
            titles = {process: title_of(process) for process in _with_descendants(self.processes)}
            self._watched = {process: Watched(title) for process, title in titles.items() if SCHEDULER_TITLE in title}

    def findings(self) -> list[Finding]:
        """The ranks that have ended, or been stopped for too long."""
        for process, watched in self._watched.items():
            state = _state(process)
            watched.checks_stopped = watched.checks_stopped + 1 if state == "T" else 0
            if state in ("", "Z"):
                watched.fault = watched.fault or f"{watched.title} (process {process}) was killed, or crashed"
            elif watched.checks_stopped >= STOPPED_CHECKS:
                watched.fault = f"{watched.title} (process {process}) has been stopped for {STOPPED_CHECKS} s (SIGSTOP)"
        return [Finding(process, watched.fault) for process, watched in self._watched.items() if watched.fault]

    def reports(self) -> list[Report]:
        """In the order of their time."""
        reports = []
        for line in os.pread(self._memory, os.fstat(self._memory).st_size, 0).splitlines():
            # A process that is killed while it writes leaves a part of its line.
            with contextlib.suppress(msgspec.DecodeError):
                reports.append(msgspec.json.decode(line, type=Report))
        return reports


def _with_descendants(processes: Sequence[BaseProcess]) -> list[int]:
    import psutil

    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            found += [root.pid, *(child.pid for child in root.children(recursive=True))]
    return found


def title_of(process: int) -> str:
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def _state(process: int) -> str:
    """The state of a process as in `/proc`, empty when it is gone."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""
