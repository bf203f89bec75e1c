"""What replays on an NPU have found reaches the host with the tokens of their step, so that nothing waits for it alone.

A step's tokens are sampled, and the next step begins, before the host knows; but no token of a failed step leaves.
Functions whose description begins with Before or Around are hooks: see `runner_hooks`. No NPU has run any of this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_ascend_moe.serving.worker import layer


class _Replays:
    """Whether a replay has been put on the stream since verdicts were fetched or waited for the last time."""

    pending = False


_replays = _Replays()


def note_replay() -> None:
    """A replay is on the stream."""
    _replays.pending = True


class VerifiedTokens:
    """SGLang's event behind the copy of a step's tokens to the host."""

    def __init__(self, copy_done: Any) -> None:
        self._copy_done = copy_done

    def synchronize(self) -> None:
        """Wait for the copy, then raise what the replays before it found wrong."""
        self._copy_done.synchronize()
        for exchange in layer.exchanges():
            exchange.raise_fetched()

    def query(self) -> bool:
        """Whether the tokens are there."""
        return bool(self._copy_done.query())


def copy_with_tokens(original: Callable[..., None], result: Any, *arguments: Any, **named: Any) -> None:
    """Around `GenerationBatchResult.copy_to_cpu`, which ends with the event."""
    if not _replays.pending:
        original(result, *arguments, **named)
        return
    _replays.pending = False
    for exchange in layer.exchanges():
        exchange.fetch_verdicts()
    original(result, *arguments, **named)
    result.copy_done = VerifiedTokens(result.copy_done)


def check_uncopied(_scheduler: Any, _batch: Any, result: Any) -> None:
    """Before `Scheduler.process_batch_result`: a result without the event is one that SGLang will wait for itself."""
    if _replays.pending and result.copy_done is None:
        _replays.pending = False
        for exchange in layer.exchanges():
            exchange.check_replays()
