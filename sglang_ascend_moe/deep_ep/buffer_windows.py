"""The windows of a Buffer: opened when a call first needs them, and again when it needs others."""

from __future__ import annotations

import torch.distributed as dist

from sglang_ascend_moe.exchange.opening import Opened, close_exchange, open_exchange
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.windows.layout import ExchangeParameters


class Windows:
    """At most one open exchange, of the parameters that were asked for last; every rank asks for the same."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._opened: Opened | None = None

    @property
    def steps(self) -> ExchangeSteps | None:
        return None if self._opened is None else self._opened.steps

    def open(self, parameters: ExchangeParameters) -> ExchangeSteps:
        """The exchange of `parameters`. Opening another one makes all handles of the one before stale."""
        if self._opened is None or self._opened.steps.layout.parameters != parameters:
            self.close()
            self._opened = open_exchange(self._group, parameters)
        return self._opened.steps

    def close(self) -> None:
        """Leaves the exchange; safe to call again."""
        if self._opened is not None:
            close_exchange(self._opened)
            self._opened = None
