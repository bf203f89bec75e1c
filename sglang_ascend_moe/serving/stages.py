"""How far a server is with its start, as its processes say it to the command that started it.

That command names a file in the environment, which every process of the server inherits; without one nothing is said.
"""

import contextlib
import enum
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

VARIABLE = "SGLANG_ASCEND_MOE_STAGES"


class Stage(enum.Enum):
    """What a starting server is busy with, in the order of time."""

    IMPORTING = "importing SGLang"
    STARTING_RANKS = "starting ranks, which import SGLang in turn"
    CONNECTING = "connecting ranks"
    LOADING = "loading weights"
    ALLOCATING = "allocating memory"
    PREPARING = "starting to serve"
    WARMING_UP = "warming up"


class Reached(msgspec.Struct, frozen=True):
    """A process of the server has come to this stage."""

    stage: Stage


def telling(stage: Stage) -> Callable[..., None]:
    """A hook, before or after a function of SGLang, that says so."""

    def tell(*_: Any, **__: Any) -> None:
        if path := os.environ.get(VARIABLE):
            # Whoever started the server may have gone, with the file.
            with contextlib.suppress(OSError):
                descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
                os.write(descriptor, msgspec.json.encode(Reached(stage)) + b"\n")
                os.close(descriptor)

    return tell


def furthest(path: Path) -> Stage:
    """The last stage that any process of the server has come to."""
    reached = [msgspec.json.decode(line, type=Reached).stage for line in path.read_bytes().splitlines()]
    return max(reached, key=list(Stage).index, default=Stage.IMPORTING)
