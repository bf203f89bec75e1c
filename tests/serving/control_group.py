"""A control group that limits the memory of what runs in it, as a container does."""

import contextlib
import os
import time
from pathlib import Path
from typing import Self

ROOT = Path("/sys/fs/cgroup")
REMOVE_SECONDS = 30.0


class ControlGroup:
    """At most `limit` bytes for the processes that are added, and their children. A context manager; needs root."""

    def __init__(self, limit: int) -> None:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        version_1 = next((path for _, controllers, path in groups if controllers == "memory"), None)
        if version_1 is not None:
            parent, names = ROOT / "memory" / version_1.lstrip("/"), ("memory.limit_in_bytes", "memory.oom_control")
        else:
            parent = ROOT / next(path for _, controllers, path in groups if not controllers).lstrip("/")
            names = ("memory.max", "memory.events")
        self._folder = parent / f"ascend-moe-test-{os.getpid()}"
        self._limit, self._limit_name, self._events_name = limit, *names

    def __enter__(self) -> Self:
        self._folder.mkdir()
        (self._folder / self._limit_name).write_text(str(self._limit))
        return self

    def __exit__(self, *_exception: object) -> None:
        until = time.monotonic() + REMOVE_SECONDS
        # A process that has ended leaves its group a moment later.
        while (self._folder / "cgroup.procs").read_text() and time.monotonic() < until:
            time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):
            self._folder.rmdir()

    def add(self, process: int) -> None:
        """Move a process, whose later children are born into the group."""
        (self._folder / "cgroup.procs").write_text(str(process))

    @property
    def killed(self) -> int:
        """Processes that the kernel has ended for want of memory."""
        lines = (line.split() for line in (self._folder / self._events_name).read_text().splitlines())
        return next(int(value) for name, value in lines if name == "oom_kill")
