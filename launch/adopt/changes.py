"""What became of the flags and variables of a command line: changes, each with its reason."""

from __future__ import annotations

from typing import Literal

import msgspec

ChangeKind = Literal["dropped", "renamed", "translated"]


class Change(msgspec.Struct, frozen=True):
    """was: a flag with its values, or `NAME=value`, as it was given. now: what stands in its place, empty if nothing
    does. why: the reason."""

    kind: ChangeKind
    was: str
    now: str
    why: str
