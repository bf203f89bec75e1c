"""The numbers that the kernels and Python share (`kernels/include/exchange.h`)."""

from __future__ import annotations

import enum


class Kind(enum.IntEnum):
    """What an exchange carries: the tag of its sequence words."""

    # That of Enum is a function in Python.
    __hash__ = int.__hash__

    DECODE = 1
    PREFILL = 2
    PLAN = 3


class Step(enum.IntEnum):
    """Steps of the protocol (docs/architecture.md), as faults and step hooks name them."""

    NONE = 0
    ANNOUNCE = 1
    COUNTS = 2
    PLACE = 3
    ARRIVALS = 4
    EXPERTS = 5
    DONE = 6
    REDUCE = 7
    REJOIN = 8
    VERIFY = 9


class Result(enum.IntEnum):
    OK = 0
    INVALID_INPUT = 1
    WINDOW_TOO_SMALL = 2
    MISMATCH = 3
    PEER_LOST = 4
    PEER_TIMEOUT = 5
    PEER_FAILED = 6
    PEER_CLOSED = 7
    POISONED = 8
    CORRUPTION = 9


class Part(enum.IntEnum):
    """Which rows of its slot an exchange uses."""

    __hash__ = int.__hash__

    WHOLE = 0
    FIRST_HALF = 1
    SECOND_HALF = 2


class InputError(enum.IntEnum):
    """Why a rank's input was refused; travels to the other ranks in its header."""

    OK = 0
    ARGUMENT = 1
    TOKENS = 2
    EXPERT_ID = 3
    REPEATED_EXPERT = 4
