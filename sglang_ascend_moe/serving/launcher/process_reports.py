"""What is said of the processes of an engine: by themselves before they end, and by their launcher."""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

import msgspec


class Started(msgspec.Struct, frozen=True, tag=True):
    """What a process says when it has its title."""

    title: str
    process: int


class Report(msgspec.Struct, frozen=True, tag=True):
    """What ended a process: its title and id, the exception, and whether that blames another process.

    node: where it ran, of a server of several nodes.
    """

    title: str
    process: int
    error: str
    blames_peer: bool
    node: int | None = None


class Finding(NamedTuple):
    """A process that has ended or stopped, in words. killed: by SIGKILL, which no process of an engine sends.

    node: where it ran, of a server of several nodes.
    """

    process: int
    fault: str
    killed: bool = False
    node: int | None = None


def say(path: str, what: Started | Report) -> None:
    """Write into the memory of the launcher, which may have gone already."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(descriptor, msgspec.json.encode(what) + b"\n")
        os.close(descriptor)
