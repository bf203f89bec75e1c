"""Mistakes that suites of other libraries do not notice, made on purpose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch

from sglang_ascend_moe.deep_ep import low_latency, normal
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps


@contextmanager
def mutated(mutation: str | None) -> Iterator[None]:
    """Runs the body with one of MUTATIONS, or none."""
    if mutation is None:
        yield
        return
    target, name, replacement = MUTATIONS[mutation]
    with patch.object(target, name, replacement(getattr(target, name))):
        yield


def _statistics_overwritten(original: Callable[..., Any]) -> Callable[..., Any]:
    def dispatch(self: Any, *arguments: Any) -> Any:
        *others, statistics, waits = arguments
        done = original(self, *others, statistics, waits)

        def receive() -> None:
            statistics.zero_()
            done.receive()

        return done._replace(receive=receive)

    return dispatch


def _zero_copy_ignored(original: Callable[..., Any]) -> Callable[..., Any]:
    def combine(*arguments: Any) -> Any:
        *before, _zero_copy, out, waits = arguments
        return original(*before, False, out, waits)

    return combine


def _source_tokens_permuted(original: Callable[..., Any]) -> Callable[..., Any]:
    def source_tokens(self: Any, rows: Any) -> Any:
        tokens = original(self, rows).clone().view(len(rows.counts), -1)
        for expert, count in enumerate(rows.counts.tolist()):
            tokens[expert, :count] = tokens[expert, :count].flip(0)
        return tokens.view(-1)

    return source_tokens


def _first_expert_miscounted(original: Callable[..., Any]) -> Callable[..., Any]:
    def dispatch(self: Any, *arguments: Any) -> Any:
        done = original(self, *arguments)
        done.counts[0] += 1
        return done

    return dispatch


def _weights_kept_at_minus_one(original: Callable[..., Any]) -> Callable[..., Any]:
    def localise(ids: Any, weights: Any, *rest: Any) -> Any:
        return original(ids, weights, *rest)[0], torch.clone(weights)

    return localise


MUTATIONS: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "statistics-overwritten": (low_latency.LowLatency, "dispatch", _statistics_overwritten),
    "zero-copy-ignored": (low_latency.LowLatency, "combine", _zero_copy_ignored),
    "source-tokens-permuted": (ExchangeSteps, "source_tokens", _source_tokens_permuted),
    "first-expert-miscounted": (low_latency.LowLatency, "dispatch", _first_expert_miscounted),
    "weights-kept-at-minus-one": (normal, "localise", _weights_kept_at_minus_one),
}
