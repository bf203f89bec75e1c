"""The numbers that the kernels and Python share (`kernels/include/exchange.h`); docs/codes.md is written from here."""

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
    """Before the first."""
    ANNOUNCE = 1
    """Waits for nobody."""
    COUNTS = 2
    """Waits for the counts of every rank, and for the places that every rank grants."""
    PLACE = 3
    """Waits for nobody."""
    ARRIVALS = 4
    """Waits for the rows of every rank."""
    EXPERTS = 5
    """Waits for nobody: the rank computes."""
    DONE = 6
    """Waits for the results of every rank."""
    REDUCE = 7
    """Waits for nobody."""
    REJOIN = 8
    """Waits for all to finish reading, before a second combine."""
    VERIFY = 9
    """Waits for nobody."""


class Result(enum.IntEnum):
    """How a call of a kernel ended. From `PEER_LOST` on it poisons the exchange."""

    OK = 0
    """Well."""
    INVALID_INPUT = 1
    """A rank's input is wrong."""
    WINDOW_TOO_SMALL = 2
    """The rows of a rank do not fit its window in one round."""
    MISMATCH = 3
    """A rank began another kind of exchange."""
    PEER_LOST = 4
    """A rank's process has ended."""
    PEER_TIMEOUT = 5
    """A rank did not answer before the deadline."""
    PEER_FAILED = 6
    """A rank raised, or its device refused a call."""
    PEER_CLOSED = 7
    """A rank closed the exchange."""
    POISONED = 8
    """The exchange failed before."""
    CORRUPTION = 9
    """A word or row is not what its writer put there."""


class Region(enum.IntEnum):
    """Where in a window a word or row is not what its writer put there (docs/architecture.md)."""

    NONE = 0
    STATE = 1
    STATUS = 2
    RECORDS = 3
    MAILBOXES = 4
    ARRIVE = 5
    DONE = 6
    ROWS = 7
    OUT = 8
    GRANTS = 9


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
