"""Windows that are too small for one round."""

from __future__ import annotations

from sglang_ascend_moe.exchange.exchange import Exchange

from .scenario import Scenario


def window_bytes_for(ranks: int, scenario: Scenario, *, tokens: int) -> int:
    """Bytes of a window that takes the rows of `tokens` tokens of every rank at once, wherever they go."""
    return Exchange.memory(ranks=ranks, **{**scenario.options(ranks), "max_tokens": tokens}).total
