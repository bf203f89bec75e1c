"""The processes of one engine as their launcher sees them: what each reported, and which are gone or stopped."""

import contextlib
import os
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import msgspec
import psutil

from sglang_ascend_moe.serving.launcher.node_link import NodeLink
from sglang_ascend_moe.serving.launcher.process_reports import Finding, Report, Started

# The place of a process's exit code in /proc/PID/stat, behind its name: psutil tells that of own children only, and
# ranks may be children of a child.
_EXIT_CODE = 49
STOPPED_CHECKS = 10
"""Checks, one a second, for which a rank may be stopped (SIGSTOP). Counted, so that a stop of all does not matter."""


class Watched:
    """A process as the launcher sees it."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.checks_stopped = 0


class EngineProcesses:
    """The processes of one engine as their launcher sees them: what they reported, and which are gone.

    What a process has to say it writes into memory of the launcher, at `path`, with `say`.
    """

    def __init__(self) -> None:
        self.started: list[BaseProcess] = []
        """What SGLang has started itself; ranks are among them, or their children."""
        self._watched: dict[int, Watched] = {}
        self._memory = os.memfd_create("what processes said")
        self.path = f"/proc/{os.getpid()}/fd/{self._memory}"
        self.link: NodeLink | None = None
        """To the launchers of other nodes, of a server of several."""
        self._told: tuple[list[Report], list[Finding]] = ([], [])

    @property
    def node(self) -> int | None:
        """The number of this node, of a server of several."""
        return None if self.link is None else self.link.own

    def close(self) -> None:
        os.close(self._memory)
        if self.link is not None:
            self.link.close()

    def account(self, *, stopped_checks: int = STOPPED_CHECKS) -> tuple[list[Report], list[Finding]]:
        """What is known of the processes of all nodes: their reports, and which have ended or been stopped.

        Other nodes hear what is known here; what they know comes when they end, too.
        """
        known = self.reports(), self.findings(stopped_checks=stopped_checks)
        if self.link is None:
            return known
        if known != self._told:
            self._told = known
            self.link.tell(*known)
        others = self.link.accounts()
        return (
            known[0] + [report for account in others for report in account.reports],
            known[1] + [finding for account in others for finding in account.findings],
        )

    def keep(self, processes: Sequence[BaseProcess], title: str) -> None:
        """`processes` are what SGLang has started for this engine, called `title` until they have said their own."""
        self.started += processes
        self._watched |= {process.pid: Watched(title) for process in processes if process.pid is not None}

    def has_ended(self) -> bool:
        return bool(self.started) and not any(process.is_alive() for process in self.started)

    def has_ended_well(self) -> bool:
        """Whether all that SGLang has started has ended as it should."""
        return bool(self.started) and all(process.exitcode == 0 for process in self.started)

    def has_lost_ranks(self) -> bool:
        """On other nodes than 0, where SGLang watches nobody: whether a process ended as it should not, or stopped."""
        return bool(self.node) and not self.has_ended_well() and bool(self.findings())

    def is_watched_by(self, watchdog: Any) -> bool:
        return any(process in watchdog._processes for process in self.started)

    def count_stopped(self) -> None:
        """Once a second: for how long each process has been stopped."""
        for process, watched in self._known().items():
            watched.checks_stopped = watched.checks_stopped + 1 if _status(process).state == "T" else 0

    def findings(self, *, stopped_checks: int = STOPPED_CHECKS) -> list[Finding]:
        """The processes that have ended, or been stopped for `stopped_checks` counts."""
        found = []
        for process, watched in self._known().items():
            who, (state, ended_by) = f"{watched.title} (process {process})", _status(process)
            if state in ("", "Z"):
                killed = signal.SIGKILL in (ended_by, self._ended_by(process))
                found.append(Finding(process, f"{who} was killed, or crashed", killed, self.node))
            elif state == "T" and watched.checks_stopped >= stopped_checks:
                seconds = watched.checks_stopped
                stopped = f"has been stopped for {seconds} s" if seconds else "is stopped"
                found.append(Finding(process, f"{who} {stopped} (SIGSTOP)", node=self.node))
        return found

    def reports(self) -> list[Report]:
        """In the order of their time."""
        reports = [said for said in self._said() if isinstance(said, Report)]
        return [msgspec.structs.replace(report, node=self.node) for report in reports]

    def _ended_by(self, process: int) -> int | None:
        """The signal that ended a process which SGLang has looked after already."""
        codes = [known.exitcode for known in self.started if known.pid == process]
        return -codes[0] if codes and codes[0] is not None else None

    def _known(self) -> dict[int, Watched]:
        for said in self._said():
            if isinstance(said, Started):
                self._watched.setdefault(said.process, Watched(said.title)).title = said.title
        return self._watched

    def _said(self) -> list[Started | Report]:
        said = []
        for line in os.pread(self._memory, os.fstat(self._memory).st_size, 0).splitlines():
            # A process that is killed while it writes leaves a part of its line.
            with contextlib.suppress(msgspec.DecodeError):
                said.append(msgspec.json.decode(line, type=Started | Report))
        return said


def title_of(process: int) -> str:
    """What a process calls itself; empty when it is gone."""
    with contextlib.suppress(psutil.Error):
        return next(iter(psutil.Process(process).cmdline()), "")
    return ""


class _Status(NamedTuple):
    """Of a process, as in `/proc`: empty when it is gone. ended_by: the signal, if it has ended."""

    state: str
    ended_by: int = 0


def _status(process: int) -> _Status:
    try:
        with open(f"/proc/{process}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return _Status("")
    return _Status(fields[0], int(fields[_EXIT_CODE]) & 0x7F)
