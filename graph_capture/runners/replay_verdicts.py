"""What calls on an NPU have found reaches the host with the tokens of their step, so that nothing waits for it alone.

A step's tokens are sampled, and the next step begins, before the host knows; but no token of a failed step leaves.
Functions whose description begins with Before or Around are hooks: see `runner_hooks`. No NPU has run any of this.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from sglang_ascend_moe.exchange.expert_exchange import ExpertExchange
from sglang_ascend_moe.serving.worker import layer


class VerifiedTokens:
    """SGLang's event behind the copy of a step's tokens to the host, and what was fetched before it."""

    def __init__(self, copy_done: Any, fetched: list[tuple[ExpertExchange, int]]) -> None:
        self._copy_done = copy_done
        self._fetched = fetched

    def synchronize(self) -> None:
        """Wait for the copy, then raise what was found wrong before it."""
        self._copy_done.synchronize()
        for exchange, place in self._fetched:
            exchange.raise_fetched(place)

    def query(self) -> bool:
        """Whether the tokens are there."""
        return bool(self._copy_done.query())


def copy_with_tokens(original: Callable[..., None], result: Any, *arguments: Any, **named: Any) -> None:
    """Around `copy_to_cpu` of SGLang's results of a batch, which ends with the event, if anything was copied."""
    # A stage looks before it hands anything on; here the stream may not be behind the one that its steps run on.
    fetched = [] if _has_stages() else [(exchange, exchange.fetch_verdicts()) for exchange in _unverified()]
    original(result, *arguments, **named)
    if fetched and result.copy_done is None:
        for exchange, _ in fetched:
            exchange.check_replays()
    elif fetched:
        result.copy_done = VerifiedTokens(result.copy_done, fetched)


def check_uncopied(scheduler: Any, batch: Any, result: Any) -> None:  # noqa: ARG001
    """Before `Scheduler.process_batch_result`: without overlap SGLang reads tokens that it has not copied before."""
    if result.copy_done is None and not scheduler.enable_overlap:
        _wait_for_verdicts(scheduler)


def check_before_handing_on(scheduler: Any, *_: Any, **__: Any) -> None:
    """Before `Scheduler._pp_send_dict_to_next_stage` and `_pp2_only_send_recv_output_tensors_npu`: the first stage of a
    pipeline answers with what the last hands on, before that looks at its own results."""
    _wait_for_verdicts(scheduler)


def _wait_for_verdicts(scheduler: Any) -> None:
    """Raise what has been found wrong since verdicts were looked at for the last time."""
    # A stage's steps run on a stream of their own, which these hooks are called beside.
    with scheduler.forward_stream_ctx if _has_stages() else nullcontext():
        for exchange in _unverified():
            exchange.check_replays()


def _has_stages() -> bool:
    serving = layer.serving()
    return serving is not None and serving.stages > 1


def _unverified() -> list[ExpertExchange]:
    return [exchange for exchange in layer.exchanges() if exchange.unverified]
