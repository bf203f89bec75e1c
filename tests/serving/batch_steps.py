"""Which batches the ranks of an engine ran, as `tell_steps` (tests/serving/patches.py) writes it into the log."""

from typing import NamedTuple

import msgspec

MARK = "a step: "


class Step(msgspec.Struct, frozen=True):
    """One step of one rank.

    kind: `extend`, `decode` or `idle` of a batch, `replay` of a graph. size: tokens of prompts that a batch reads, or
    requests that a graph has room for.
    """

    rank: int
    kind: str
    requests: int
    size: int


class Replay(NamedTuple):
    """One decode step of all ranks, which replay graphs together."""

    requests: tuple[int, ...]
    buckets: tuple[int, ...]


def steps_of(log: str) -> list[Step]:
    """All steps that the ranks took, in the order of each."""
    lines = [line for line in log.splitlines() if MARK in line]
    return [msgspec.json.decode(line.partition(MARK)[2], type=Step) for line in lines]


def replays_of(log: str) -> list[Replay]:
    """The replays of all ranks side by side. Raises ValueError if a rank made more than another."""
    by_rank: dict[int, list[Step]] = {}
    for step in steps_of(log):
        if step.kind == "replay":
            by_rank.setdefault(step.rank, []).append(step)
    together = zip(*(by_rank[rank] for rank in sorted(by_rank)), strict=True)
    return [Replay(tuple(step.requests for step in steps), tuple(step.size for step in steps)) for steps in together]
