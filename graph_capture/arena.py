"""Where the tensors of a recorded step lie: pure arithmetic, and the memory itself."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import NamedTuple

import torch

ALIGNMENT = 64
"""Bytes: a cache line, as torch aligns tensors on the host."""


class Lifetime(NamedTuple):
    """Memory `memory` of `bytes` is used by the calls `first` to `last`, both included."""

    memory: int
    bytes: int
    first: int
    last: int


def place(lifetimes: Iterable[Lifetime]) -> tuple[dict[int, int], int]:
    """Offset of every memory, and bytes in total. Memory that is in use at the same call does not overlap.

    The largest come first, each at the lowest offset that is free during its life.
    """
    # Begin, end, first, last and memory of each. Most of a placement is spent on going over them.
    placed: list[tuple[int, int, int, int, int]] = []
    for memory, size, first, last in sorted(lifetimes, key=lambda item: (-item.bytes, item.first, item.memory)):
        offset = 0
        for begin, end, other_first, other_last, _ in placed:
            if begin >= offset + size:
                break
            if other_last >= first and other_first <= last and end > offset:
                offset = end
        insort(placed, (offset, offset + _aligned(size), first, last, memory))
    return {memory: begin for begin, *_, memory in placed}, max((item[1] for item in placed), default=0)


def _aligned(size: int) -> int:
    return -(-max(size, 1) // ALIGNMENT) * ALIGNMENT


class Arena:
    """Memory that tapes share, of which one runs at a time. What a tape was given stays at its address."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.bytes = 0

    def part(self, offset: int, size: int, total: int) -> torch.Tensor:
        """uint8 [size] at `offset` of a memory of at least `total` bytes."""
        if self._memory.numel() < total:
            # Through numpy, because such memory cannot be resized: an operator that tried would move all tapes.
            self._memory = torch.from_numpy(torch.zeros(total + ALIGNMENT, dtype=torch.uint8).numpy())
            self.bytes += self._memory.numel()
        return self._memory[offset : offset + size]
