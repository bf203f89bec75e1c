"""Ctrl-C, and SIGTERM alike, at any moment of a command: one line, no traceback, and no process left behind.

Python raises an interrupt wherever it happens to be; an import swallows it, or shows it with a traceback. Here the
signal's handler itself ends the command, together with every process that it has started. What has more to put away,
such as a folder, asks for an exception meanwhile: `raised`.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from sglang_ascend_moe.serving.launcher.exit_codes import INTERRUPTED, OK

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_END_SECONDS = 10.0
_POLL_SECONDS = 0.01


class _Watch:
    """A command that heeds interrupts, and what becomes of one."""

    def __init__(self, command: str, put_away: Callable[[], None] | None) -> None:
        self.command = command
        self.put_away = put_away
        self.raises = False
        self.serves = False
        # An interrupt came in a block in which it waits.
        self.waiting = False
        # What follows an interrupt puts away, and must not be interrupted.
        self.interrupted = False

    def __call__(self, _number: int, _frame: object) -> None:
        if self.interrupted:
            return
        if _held:
            self.waiting = True
            return
        self.interrupted = True
        if self.raises:
            raise KeyboardInterrupt
        end_descendants()
        for put_away in (self.put_away, *_put_away_too):
            if put_away is not None:
                put_away()
        code = self.say()
        # Whatever is interrupted may hold what a flush needs.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            sys.stdout.flush()
        os._exit(code)

    @property
    def code(self) -> int:
        """The exit code after an interrupt."""
        return OK if self.serves else INTERRUPTED

    def say(self) -> int:
        """Write the line, and return the exit code."""
        # A terminal shows ^C where it was pressed.
        begin = "\n" if os.isatty(2) else ""
        line = f"{begin}{self.command}: {'stopped' if self.serves else 'interrupted'}\n"
        with contextlib.suppress(OSError):
            os.write(2, line.encode())
        return self.code


_watch: _Watch | None = None
# Blocks in which interrupts wait, one inside of the other.
_held = 0
_put_away_too: list[Callable[[], None]] = []


def watch(command: str, put_away: Callable[[], None] | None = None) -> None:
    """From now on an interrupt ends this process as above; `put_away` is called before.

    A process that is watched already is left alone, and so are other threads than the main one.
    """
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        return
    _watch = _Watch(command, put_away)
    for number in SIGNALS:
        signal.signal(number, _watch)
    # Whoever started this process may have held them: see `held`.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def put_away_too(put_away: Callable[[], None]) -> None:
    """An interrupt that ends this process calls `put_away` before, each function once."""
    if put_away not in _put_away_too:
        _put_away_too.append(put_away)


@contextlib.contextmanager
def watched(command: str) -> Iterator[None]:
    """As `watch`, in the block only."""
    global _watch
    before = {number: signal.getsignal(number) for number in SIGNALS}
    outer = _watch
    watch(command)
    try:
        yield
    finally:
        if _watch is not outer:
            _watch = outer
            for number, handler in before.items():
                signal.signal(number, handler)


def command() -> str:
    """What is watched, empty if nothing is."""
    return "" if _watch is None else _watch.command


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """The first interrupt in the block is raised as KeyboardInterrupt; others after it are ignored."""
    watch = _watch
    if watch is None:
        yield
        return
    before, watch.raises = watch.raises, True
    try:
        yield
    finally:
        watch.raises = before


@contextlib.contextmanager
def held() -> Iterator[None]:
    """An interrupt in the block comes after it, so that a process is started and known, or neither.

    Processes that are started in the block do not heed interrupts: they are ended by who started them.
    """
    global _held
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # Where there are other threads, the kernel gives the signal to one of them, and Python calls the handler here.
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if _watch is not None and _watch.waiting and not _held:
            _watch.waiting = False
            _watch(signal.SIGINT, None)


def hold_from_spawned() -> None:
    """In `held`, before processes are spawned: with the first one multiprocessing starts its resource tracker, and lets
    interrupts through again."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def told() -> int:
    """After an interrupt was raised and everything is put away: say so in one line, and return the exit code."""
    return INTERRUPTED if _watch is None else _watch.say()


def ignore() -> None:
    """What follows puts away, and must not be interrupted."""
    if _watch is not None:
        _watch.interrupted = True


def serve_from_now_on() -> None:
    """Before SGLang's HTTP server runs, which heeds interrupts itself and raises them again when it has ended."""
    if _watch is not None:
        _watch.raises = _watch.serves = True


def exit_code() -> int:
    """Of this command, if it is interrupted now."""
    return OK if _watch is None else _watch.code


def end_descendants() -> None:
    """Kill every process that this one has started, and those that they have; return when they are gone."""
    until = time.monotonic() + _END_SECONDS
    killed: set[int] = set()
    while time.monotonic() < until:
        parents = _parents_of_living()
        for process in _descendants(parents):
            killed.add(process)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        # One whose parent was gone first is nobody's descendant any more, and may still end.
        if killed.isdisjoint(parents):
            return
        time.sleep(_POLL_SECONDS)


def _parents_of_living() -> dict[int, int]:
    # Not by psutil, which takes a while to import: before every command, or where an interrupt comes during that.
    parents = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state not in "ZX":
            parents[int(entry.name)] = int(parent)
    return parents


def _descendants(parents: Mapping[int, int]) -> list[int]:
    """Of this process."""
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[1:]


def heed_none() -> None:
    """Ignore interrupts from now on: for a process that is ended by the one that started it."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _forget() -> None:
    """In a child that was forked: an interrupt of it does not end the command, of which only the parent is one."""
    global _watch, _held
    if _held:
        # Not only held: multiprocessing's resource tracker undoes that when it starts.
        heed_none()
    elif _watch is not None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
    _watch, _held = None, 0
    _put_away_too.clear()


os.register_at_fork(after_in_child=_forget)
