"""What servers leave behind: processes that carry a mark in their environment, names in /dev/shm, temporary files."""

import os
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

MARK = "SERVING_TEST_MARK"
POLL_SECONDS = 0.1
LEFTOVER_SECONDS = 60.0
SHARED_MEMORY = Path("/dev/shm")
CACHE = "cutlass_python_cache"
"""CUTLASS makes it for all processes of a user, in a folder with the name of the user, when it is imported."""


class Leftovers(NamedTuple):
    """Pids of marked processes, names in /dev/shm that were not there before and that no living process maps, and new
    names in the temporary directory."""

    processes: list[int]
    names: list[str]
    temporary: list[str]


NOTHING = Leftovers([], [], [])


def shared_memory_names() -> set[str]:
    """Names in /dev/shm."""
    return set(os.listdir(SHARED_MEMORY))


def temporary_names(folder: Path | None = None) -> set[str]:
    """Names in the temporary directory, or in `folder`, but for a cache of all processes."""
    place = folder or Path(tempfile.gettempdir())
    return {path.name for path in place.iterdir() if not (path / CACHE).exists()}


def marked_processes(mark: str) -> list[int]:
    """Living processes, other than this one, that inherited `MARK=mark`. Zombies have no environment."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if wanted in environment.split(b"\0"):
            found.append(int(entry.name))
    return found


def mapped_by_a_process(name: str) -> bool:
    """Whether a living process maps this name of /dev/shm: then it is in use, and somebody else's."""
    wanted = str(SHARED_MEMORY / name)
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            if wanted in maps.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return False


class Surroundings:
    """The mark that every process of a test carries, and what was there before it.

    temporary: the temporary directory of what is tested, if it is not that of the tests.
    """

    def __init__(self, temporary: Path | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self._temporary = temporary
        self._names_before = shared_memory_names()
        self._temporary_before = temporary_names(temporary)

    def leftovers(self) -> Leftovers:
        """What is left. Waits for processes and names in /dev/shm to go, at most LEFTOVER_SECONDS."""
        deadline = time.monotonic() + LEFTOVER_SECONDS
        while True:
            left = Leftovers(
                marked_processes(self.mark),
                sorted(name for name in shared_memory_names() - self._names_before if not mapped_by_a_process(name)),
                sorted(temporary_names(self._temporary) - self._temporary_before),
            )
            if not (left.processes or left.names) or time.monotonic() > deadline:
                return left
            time.sleep(POLL_SECONDS)
