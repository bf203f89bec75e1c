"""Which graphs are captured: pure arithmetic, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import CaptureRefused

_LABEL = "kv"
SMALLEST_LENGTH = 128
"""Tokens: below it a shorter attention saves less than another graph costs."""
MOST_BYTES = 512 * 2**20
"""Bytes that the largest graph may take for the keys and values that it gathers."""


class Limits(NamedTuple):
    """What the scheduler may put into one decode batch of one rank.

    requests: most requests; alignment: their number in a batch is a multiple of it, after padding.
    length: most tokens of one request; token_bytes: keys and values of one token in one layer.
    """

    requests: int
    alignment: int
    length: int
    token_bytes: int

    @property
    def largest_batch(self) -> int:
        """With its padding."""
        return aligned(self.requests, self.alignment)


class Buckets(NamedTuple):
    """Batch sizes and lengths, ascending; there is a graph for each pair. `bytes`: gathered by the largest of them."""

    batches: tuple[int, ...]
    lengths: tuple[int, ...]
    bytes: int

    @property
    def graphs(self) -> int:
        return len(self.batches) * len(self.lengths)

    def length_for(self, tokens: int) -> int:
        """The smallest length that holds `tokens`. Raises `CaptureRefused` if none does: keys would be left out."""
        for length in self.lengths:
            if length >= tokens:
                return length
        raise CaptureRefused(f"no graph holds {tokens} tokens of a request; the longest holds {self.lengths[-1]}")


def aligned(requests: int, alignment: int) -> int:
    """As many as there are in a batch after padding."""
    return -(-requests // alignment) * alignment


def within(batches: Sequence[int], largest: int) -> list[int]:
    """`batches` that somebody asks for, ascending, none above the `largest` that there is: a graph of more would bring
    more tokens than an exchange is for."""
    return sorted({min(batch, largest) for batch in batches})


def choose_buckets(limits: Limits, most_bytes: int = MOST_BYTES) -> Buckets:
    """Powers of two times the alignment, and powers of two from SMALLEST_LENGTH on, each up to its limit.

    A batch is padded to less than twice its aligned size, a length to SMALLEST_LENGTH or to less than twice its tokens
    and SMALLEST_LENGTH more: the greatest takes the place of one that is shorter by less than that, as SGLang adds some
    tokens to a context. There are no more than (log2(requests / alignment) + 2) * (log2(length / SMALLEST_LENGTH) + 2)
    graphs. Batches whose keys and values of the greatest length exceed `most_bytes` get none and run eagerly.
    """
    most = limits.largest_batch
    fitting = [
        batch for batch in _doubling(limits.alignment, most) if batch * limits.length * limits.token_bytes <= most_bytes
    ]
    largest = fitting[-1] if fitting else 0
    return Buckets(tuple(fitting), tuple(_lengths(limits.length)), largest * limits.length * limits.token_bytes)


def _lengths(greatest: int) -> list[int]:
    *shorter, last = _doubling(SMALLEST_LENGTH, greatest)
    return [*shorter[:1], *(length for length in shorter[1:] if last - length >= SMALLEST_LENGTH), last]


def _doubling(first: int, last: int) -> list[int]:
    """`first`, its doubles below `last`, and `last`."""
    sizes = []
    size = first
    while size < last:
        sizes.append(size)
        size *= 2
    return [*sizes, last]


def label_of(length: int) -> str:
    """The name under which SGLang knows the graphs of this length."""
    return f"{_LABEL}{length}"


def length_of(label: str) -> int:
    """The length of the graphs with this name."""
    return int(label.removeprefix(_LABEL))


def longest(forward_batch: Any, ahead: int) -> int:
    """Tokens of the longest request of a batch of SGLang, and `ahead` more."""
    lengths = forward_batch.seq_lens
    return int(lengths.max()) + ahead if lengths.numel() else 1
