"""What a dispatch hands to the experts."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class ExpertRows(NamedTuple):
    """The token rows this rank's experts have to compute, and the place for their results.

    Rows lie in (local expert, source rank, token, k) order and without gaps: expert e's rows begin at
    `counts[:e].sum()`. Rows at and past `counts.sum()` are undefined. In a padded window they begin at
    e * ranks * max_tokens, and rows past an expert's count are undefined.
    """

    rows: Tensor
    """[capacity, hidden], x's dtype."""
    scales: Tensor | None
    """[capacity] float32 when rows are quantised, else None."""
    counts: Tensor
    """[experts of this rank] int64, rows per expert."""
    out: Tensor
    """[capacity, hidden], x's dtype; experts write the result of `rows[i]` into `out[i]`."""
    ticket: Any
    """Private to the exchange: what combine needs to find the rows again."""
