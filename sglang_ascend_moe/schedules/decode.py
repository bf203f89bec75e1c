"""The decode schedule: one exchange, the fewest steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sglang_ascend_moe.codes import Kind
from sglang_ascend_moe.schedules.rows import ExpertRows
from sglang_ascend_moe.schedules.steps import ExchangeSteps, RoutedTokens


def run_decode(
    steps: ExchangeSteps, tokens: RoutedTokens, experts: Callable[[ExpertRows], None], out: torch.Tensor
) -> None:
    """The whole layer in one exchange; the result goes into `out` [tokens, hidden]."""
    rows = steps.dispatch(tokens, Kind.DECODE)
    experts(rows)
    steps.combine(rows.out, rows, out)
