"""The decode schedule: one exchange, the fewest steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sglang_ascend_moe.errors import CaptureRefused
from sglang_ascend_moe.exchange.schedules.inputs import RoutedTokens
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.native.codes import Kind, Part


def run_decode(
    steps: ExchangeSteps,
    tokens: RoutedTokens,
    experts: Callable[[ExpertRows], None],
    out: torch.Tensor,
    *,
    wait: bool = True,
    most_rows: int = 0,
) -> None:
    """The whole layer in one exchange; the result goes into `out` [tokens, hidden].

    If it is not to wait but `most_rows`, that a rank gets at most, is 0, it waits to learn how many rows came.
    """
    if wait or not most_rows:
        rows = steps.dispatch(tokens, Kind.DECODE, keep_weights=False)
    else:
        rows = steps.dispatch_deferred(tokens, Kind.DECODE, most_rows=most_rows)
    experts(rows)
    steps.combine(rows.out, rows, out, wait=wait)


def prepare_decode(
    steps: ExchangeSteps,
    tokens: RoutedTokens,
    experts: Callable[[ExpertRows], None],
    out: torch.Tensor,
    *,
    most_rows: int,
) -> Callable[[], None]:
    """`run_decode` over tensors that stay where they are; each call of the result runs it on what they hold then.

    most_rows: that can come; 0: not known.

    Raises `CaptureRefused` for tensors that would have to be copied first.
    """
    needed = {
        "x with dense rows": tokens.x.stride(1) == 1,
        "out with dense rows": out.stride(1) == 1,
        "contiguous ids": tokens.ids.is_contiguous(),
        "contiguous float32 weights": tokens.weights.dtype == torch.float32 and tokens.weights.is_contiguous(),
    }
    for what, given in needed.items():
        if not given:
            raise CaptureRefused(f"an exchange in a graph takes {what}: others would be copied again at every replay")
    call = steps.session.replayed_call(len(tokens.x))
    call.take(*tokens, Kind.DECODE, Part.WHOLE, keep_weights=False)

    def run() -> None:
        rows = steps.received(call, Kind.DECODE, Part.WHOLE, tokens.weights, most_rows=most_rows)
        experts(rows)
        steps.combine(rows.out, rows, out)

    return run
