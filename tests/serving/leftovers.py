"""What servers leave behind: processes that carry a mark in their environment, and names in /dev/shm."""

import os
import time
import uuid
from pathlib import Path
from typing import NamedTuple

MARK = "SERVING_TEST_MARK"
POLL_SECONDS = 0.1
LEFTOVER_SECONDS = 60.0
SHARED_MEMORY = Path("/dev/shm")


class Leftovers(NamedTuple):
    """Pids of marked processes, and names in /dev/shm that were not there before and that no living process maps."""

    processes: list[int]
    names: list[str]


NOTHING = Leftovers([], [])


def shared_memory_names() -> set[str]:
    """Names in /dev/shm."""
    return set(os.listdir(SHARED_MEMORY))


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


def leftovers(mark: str, names_before: set[str], timeout: float) -> Leftovers:
    """What is left; returns as soon as it is nothing, at the latest after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        new_names = sorted(shared_memory_names() - names_before)
        left = Leftovers(marked_processes(mark), [name for name in new_names if not mapped_by_a_process(name)])
        if left == NOTHING or time.monotonic() > deadline:
            return left
        time.sleep(POLL_SECONDS)


class Surroundings:
    """The mark that every process of a test carries, and the names in /dev/shm before it."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._names_before = shared_memory_names()

    def leftovers(self) -> Leftovers:
        return leftovers(self.mark, self._names_before, LEFTOVER_SECONDS)
