"""Ranks for tests: processes forked from this one that run programs in step over a gloo group.

A pool lives as long as its ranks do what they are told, because forking eight processes and connecting them for every
test would cost more than the tests. When a rank fails, hangs or dies unasked, the pool is ended and the failure says
which rank it was and where it stood.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import pickle
import re
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

_FORK = get_context("fork")
_PR_SET_PDEATHSIG = 1
_TRACE_GRACE_S = 10.0
_END_GRACE_S = 5.0


class RanksFailed(Exception):
    """Ranks raised, hung or died; the text holds what is known of each."""


class Ended(NamedTuple):
    """What `Pool.collect` reports of a rank that was expected to die."""

    exitcode: int | None


class _Raised(NamedTuple):
    traceback: str


class _Note(NamedTuple):
    text: str


class Rank:
    """What a program sees of its place among the ranks."""

    def __init__(self, rank: int, size: int, directory: Path, connection: Connection) -> None:
        self.rank = rank
        self.size = size
        self._directory = directory
        self._connection = connection
        self.group = self._connect("world", rank, size)

    def note(self, text: str) -> None:
        """Tell the parent that this point was reached."""
        self._connection.send(_Note(text))

    def wait_for_parent(self) -> None:
        """Wait until the parent calls `Pool.release`."""
        self._connection.recv()

    def regroup(self, name: str, members: Sequence[int]) -> dist.ProcessGroup:
        """Leave the group and form another of `members` (ranks of the pool). `rank` and `size` change with it."""
        dist.destroy_process_group()
        self.rank, self.size = list(members).index(self.rank), len(members)
        self.group = self._connect(name, self.rank, self.size)
        return self.group

    def _connect(self, name: str, rank: int, size: int) -> dist.ProcessGroup:
        store = dist.FileStore(str(self._directory / name), size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
        group = dist.group.WORLD
        if group is None:
            raise RuntimeError("torch.distributed made no default group")
        return group


Program = Callable[..., Any]


class Pool:
    """`ranks` processes. Use `run`, or `start`, `await_notes`, `signal`, `release` and `collect` one by one."""

    def __init__(self, ranks: int) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="exchange-ranks-"))
        self._connections: list[Connection] = []
        self._processes = []
        for rank in range(ranks):
            ours, theirs = _FORK.Pipe()
            process = _FORK.Process(target=_serve, args=(theirs, rank, ranks, self._directory), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def run(self, program: Program, *arguments: Any, deadline_s: float = 120.0) -> list[Any]:
        """Run `program(rank, *arguments)` on every rank and return the results in rank order."""
        self.start(program, *arguments)
        return self.collect(deadline_s=deadline_s)

    def start(self, program: Program, *arguments: Any) -> None:
        """Send a module-level function and its arguments to every rank."""
        for connection in self._connections:
            with contextlib.suppress(BrokenPipeError):  # of a rank that has ended, as `collect` will find
                connection.send((program, arguments))

    def release(self, *ranks: int) -> None:
        """Let ranks go on that are in `Rank.wait_for_parent`."""
        for rank in ranks:
            self._connections[rank].send(None)

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.pids[rank], number)

    def next_note(self, rank: int, *, deadline_s: float = 120.0) -> str:
        """Wait for the next note of a rank."""
        message = self._receive(rank, time.monotonic() + deadline_s)
        if not isinstance(message, _Note):
            self._fail({rank: f"sent {message!r} instead of a note"}, [])
        return message.text

    def await_notes(self, text: str, ranks: Collection[int], *, deadline_s: float = 120.0) -> None:
        """Wait until each of `ranks` noted `text`."""
        end = time.monotonic() + deadline_s
        for rank in ranks:
            noted = self.next_note(rank, deadline_s=max(0.0, end - time.monotonic()))
            if noted != text:
                self._fail({rank: f"noted {noted!r} instead of {text!r}"}, [])

    def collect(self, *, deadline_s: float = 120.0, dead: Collection[int] = ()) -> list[Any]:
        """Results in rank order. Ranks in `dead` have to end without a result and are reported as `Ended`."""
        end = time.monotonic() + deadline_s
        results: dict[int, Any] = {}
        raised: dict[int, str] = {}
        pending = set(range(len(self._processes)))
        while pending:
            sources = {self._connections[rank]: rank for rank in pending}
            ready = wait(list(sources), timeout=max(0.0, end - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                rank = sources[connection]
                message = self._receive(rank, end)
                if isinstance(message, _Note):
                    continue
                pending.discard(rank)
                if isinstance(message, _Raised):
                    raised[rank] = message.traceback
                    # The others may now wait for this rank: give them time to say so, not the whole deadline.
                    end = min(end, time.monotonic() + _END_GRACE_S)
                elif isinstance(message, Ended) and rank not in dead:
                    raised[rank] = f"ended with exit code {message.exitcode}"
                    end = min(end, time.monotonic() + _END_GRACE_S)
                elif rank in dead and not isinstance(message, Ended):
                    raised[rank] = f"returned {message!r}, but was expected to die"
                else:
                    results[rank] = message
        if raised or pending:
            self._fail(raised, sorted(pending))
        return [results[rank] for rank in range(len(self._processes))]

    def close(self) -> None:
        """End every rank, gently where possible, and remove what the pool left on disk."""
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.send(None)
        end = time.monotonic() + _END_GRACE_S
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
        self._kill()

    def _kill(self) -> None:
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join()
        for connection in self._connections:
            connection.close()
        shutil.rmtree(self._directory, ignore_errors=True)

    def _receive(self, rank: int, end: float) -> Any:
        """The next message of a rank: `_Note`, `_Raised`, `Ended`, or the value its program returned."""
        connection = self._connections[rank]
        if not connection.poll(max(0.0, end - time.monotonic())):
            self._fail({}, [rank])
        try:
            return pickle.loads(connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            self._processes[rank].join(max(_END_GRACE_S, end - time.monotonic()))
            return Ended(self._processes[rank].exitcode)

    def _fail(self, raised: dict[int, str], hung: Sequence[int]) -> None:
        """End the pool and raise what is known."""
        texts = [f"rank {rank} of {len(self._processes)}: {text}" for rank, text in sorted(raised.items())]
        texts += [f"rank {rank} of {len(self._processes)} did not finish:\n{self._stack(rank)}" for rank in hung]
        self._kill()
        raise RanksFailed("\n" + "\n".join(texts))

    def _stack(self, rank: int) -> str:
        """Where a rank that does not answer stands, written by its own signal handler."""
        path = _trace_path(self._directory, rank)
        with contextlib.suppress(ProcessLookupError):
            self.signal(rank, signal.SIGUSR1)
        end = time.monotonic() + _TRACE_GRACE_S
        while time.monotonic() < end:
            text = path.read_text() if path.exists() else ""
            if text.endswith("\n"):
                # Below `_serve` stands only how this process came to be.
                return re.sub(r"( in _serve\n)(?:  File .*\n)*", r"\1", text)
            wait([self._processes[rank].sentinel], timeout=0.05)
        return "no traceback: the process is stopped or gone"


def _trace_path(directory: Path, rank: int) -> Path:
    return directory / f"stack-{rank}"


def _serve(connection: Connection, rank: int, size: int, directory: Path) -> None:
    """The life of a rank: run programs until told to stop."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A suite that runs in the background of a shell has inherited that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What was forked is shared memory as long as nobody touches it: keep the garbage collector away from it.
    gc.freeze()
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with open(_trace_path(directory, rank), "w") as trace:
        faulthandler.register(signal.SIGUSR1, file=trace, chain=False)
        try:
            context = Rank(rank, size, directory, connection)
        except RuntimeError:
            _send(connection, _Raised(traceback.format_exc()))
            return
        while (order := connection.recv()) is not None:
            program, arguments = order
            try:
                _send(connection, program(context, *arguments))
            except BaseException:  # noqa: BLE001 - a failed rank is reported, whatever it raised
                _send(connection, _Raised(traceback.format_exc()))
    # Threads of gloo may outlive the group; nothing of this process is worth an orderly end.
    os._exit(0)


def _send(connection: Connection, message: Any) -> None:
    connection.send_bytes(pickle.dumps(message))
