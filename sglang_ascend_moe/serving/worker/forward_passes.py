"""Which models a rank runs in a batch, and in which phase: the same on all ranks whose MoE layers exchange rows.

With speculative decoding a batch is several forward passes: a prefill is the model and the draft model; a decode step
is each draft, the model that verifies, and the draft model, which reads what was accepted. Each makes the exchanges of
its model's MoE layers, so all ranks have to take the same passes, idle ones included.
"""

from __future__ import annotations

from sglang_ascend_moe.serving.worker.journal import Journal, by_value

_END = 0
_NAMES = {
    _END: "ended",
    1: "began the model, decode, in",
    2: "began the model, prefill, in",
    3: "began the draft model, decode, in",
    4: "began the draft model, prefill, in",
}


class ForwardPasses:
    """The forward passes of this rank, and those of its peers as far as they have come."""

    def __init__(self, journal: Journal) -> None:
        """journal: of its own, whose peers are all other ranks."""
        self._journal = journal
        self._taken = 0

    def begin(self, *, drafts: bool, prefill: bool) -> None:
        """This rank is about to run the draft model, or the model."""
        self._taken += 1
        self._journal.begin(1 + 2 * drafts + prefill, (), self._taken)

    def end_batch(self) -> None:
        """This rank has the result of a batch."""
        self._journal.begin(_END, (), self._taken)
        self._taken = 0

    def problem(self) -> str:
        """In what ranks that exchange rows differ, in words; empty if in nothing as far as they have come."""
        difference = None if self._journal.agrees() else self._journal.difference()
        if difference is None:
            return ""
        said = {
            rank: f"{_NAMES.get(event.phase, event.phase)} its batch {'after' if event.phase == _END else 'as'}"
            f" forward pass {event.tokens}"
            for rank, event in difference.events.items()
        }
        return f"ranks make different exchanges: {by_value(said)}; report this with the server's arguments"
