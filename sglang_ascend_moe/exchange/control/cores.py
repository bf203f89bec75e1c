"""What ranks may do with the cores of their machine, from those that each says it may use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

from sglang_ascend_moe.exchange.control.blocks import Hello

OWN_CORE_SPIN_NS = 20_000
"""Several times what a rendezvous of ranks takes that come together, and less than a scheduler notices."""


def workers_of(hellos: Sequence[Hello]) -> list[int]:
    """Threads with which each rank moves large payloads: what it asked for, or its share of the cores, at least 1."""
    shares = core_shares([hello.cores for hello in hellos])
    return [hello.workers or max(1, int(share)) for hello, share in zip(hellos, shares, strict=True)]


def spin_ns_of(cores: Sequence[Iterable[int]]) -> int:
    """Nanoseconds for which waits keep their core before others may have it, of ranks that may use `cores`: none where
    there is not a core for each of them, because whoever is waited for may need this one.
    """
    return OWN_CORE_SPIN_NS if min(core_shares(cores)) >= 1 else 0


def core_shares(cores: Sequence[Iterable[int]]) -> list[Fraction]:
    """By rank: a core that several ranks may use counts for each of them as the equal part of it."""
    users = Counter(core for own in cores for core in set(own))
    return [sum((Fraction(1, users[core]) for core in set(own)), Fraction()) for own in cores]
