"""What a process holds: descriptors, mappings, names in shared memory."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

_SHARED_MEMORY = Path("/dev/shm")
STAYS_S = 60.0


class Mapping(NamedTuple):
    bytes: int
    permissions: str
    path: str
    """Empty for anonymous memory, "/memfd:... (deleted)" for memory without a name in the file system."""


def descriptors() -> Counter[str]:
    """What every open descriptor of this process leads to, after collecting garbage that may hold some."""
    gc.collect()
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


def mappings() -> Counter[Mapping]:
    """Every mapping of this process that can be shared with another one."""
    gc.collect()
    found: Counter[Mapping] = Counter()
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, permissions, _, _, _, *path = line.split(maxsplit=5)
        begin, end = (int(address, 16) for address in addresses.split("-"))
        if "s" in permissions:
            found[Mapping(end - begin, permissions, path[0] if path else "")] += 1
    return found


def names_in_shared_memory() -> set[str]:
    return {path.name for path in _SHARED_MEMORY.iterdir()}


def names_left_in_shared_memory(before: set[str]) -> set[str]:
    """Names that appeared since `before`, stay, and that no living process holds: those of other programs are in use,
    or go at once."""
    until = time.monotonic() + STAYS_S
    while True:
        new = names_in_shared_memory() - before
        left = {name for name in new if not _in_use(_SHARED_MEMORY / name)}
        if not left or time.monotonic() > until:
            return left


def _in_use(path: Path) -> bool:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(path) in (process / "maps").read_text():
                return True
            if any(os.readlink(descriptor) == str(path) for descriptor in (process / "fd").iterdir()):
                return True
        except OSError:  # the process has ended
            continue
    return False
