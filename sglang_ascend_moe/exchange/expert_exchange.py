"""What an MoE layer may ask of an exchange, whatever moves its rows."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, Self

import torch

from sglang_ascend_moe.exchange.observation import Observation
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.windows.layout import ExchangeParameters, WindowMemory

Phase = Literal["decode", "prefill"]
"""Which schedule a call takes; the same on every rank."""


class ExpertExchange(Protocol):
    """Satisfied by `Exchange`, over windows of the host or of NPUs, and by `CollectiveExchange`, which has none.

    The calls are described at `Exchange`.
    """

    @property
    def rank(self) -> int: ...

    @property
    def parameters(self) -> ExchangeParameters: ...

    @property
    def nodes(self) -> list[int]:
        """[ranks] the node on which each runs, all the same on one machine."""

    def gone(self) -> list[int]:
        """The ranks whose process has ended, or whose machine has been silent for `timeout_s`."""

    @property
    def observation(self) -> Observation:
        """What this exchange has done so far, counted."""

    @property
    def window(self) -> WindowMemory:
        """The bytes of this rank's window, by region; all 0 without one."""

    @property
    def epoch(self) -> int:
        """Exchanges begun so far by this rank."""

    @property
    def epochs(self) -> list[int]:
        """Exchanges begun so far by every rank, as their windows say at this moment; none without windows."""

    @property
    def waited_s(self) -> list[float]:
        """Seconds for which each rank has held this one up so far; none where that is not known."""

    @property
    def rows_by_rank(self) -> list[int]:
        """Rows that each rank received in the last dispatch."""

    def dispatch(
        self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, *, phase: Phase = "decode"
    ) -> ExpertRows: ...

    def combine(
        self, expert_out: torch.Tensor, rows: ExpertRows, *, out: torch.Tensor | None = None
    ) -> torch.Tensor: ...

    def run(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        experts: Callable[[ExpertRows], None],
        *,
        phase: Phase = "decode",
        out: torch.Tensor | None = None,
        wait: bool = True,
        most_tokens: int | None = None,
    ) -> torch.Tensor: ...

    def prepare(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        experts: Callable[[ExpertRows], None],
        out: torch.Tensor,
        *,
        most_tokens: int | None = None,
    ) -> Callable[[], None]: ...

    @property
    def unverified(self) -> bool: ...

    def note_replay(self) -> None: ...

    def check_replays(self) -> None: ...

    def fetch_verdicts(self) -> int: ...

    def raise_fetched(self, fetched: int) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...
