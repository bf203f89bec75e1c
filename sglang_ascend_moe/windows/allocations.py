"""Says when this process allocates a window, to whoever wants to know: a captured step must not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_watchers: list[Callable[[int], None]] = []


def report(total_bytes: int) -> None:
    """Called by everything that allocates a window, before it does."""
    for watcher in _watchers:
        watcher(total_bytes)


@contextmanager
def watch(watcher: Callable[[int], None]) -> Iterator[None]:
    """Calls `watcher(total_bytes)` for each window that is allocated inside the block."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)
