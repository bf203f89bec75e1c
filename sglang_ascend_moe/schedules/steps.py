"""One exchange over the windows: the steps that both schedules are made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, NoReturn

import torch

from sglang_ascend_moe.codes import Kind, Part
from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.native import Dispatched, NativeSession
from sglang_ascend_moe.observation import Observation
from sglang_ascend_moe.schedules.rows import ExpertRows
from sglang_ascend_moe.windows.host import MappedWindow
from sglang_ascend_moe.windows.layout import LINE_BYTES, WindowLayout

MAX_COMBINES = 2**15
"""Combines of one dispatch: the tag of a done word has 16 bits, and every combine but the first takes two."""


_HALVES = {
    Part.WHOLE: (Part.FIRST_HALF, Part.SECOND_HALF),
    Part.FIRST_HALF: (Part.FIRST_HALF,),
    Part.SECOND_HALF: (Part.SECOND_HALF,),
}


class RoutedTokens(NamedTuple):
    """A call's checked input.

    x [tokens, hidden] with dense rows; ids [tokens, topk] int32 or int64, contiguous, -1 = not routed;
    weights [tokens, topk] float32, contiguous.
    """

    x: torch.Tensor
    ids: torch.Tensor
    weights: torch.Tensor

    def between(self, begin: int, end: int) -> RoutedTokens:
        return RoutedTokens(self.x[begin:end], self.ids[begin:end], self.weights[begin:end])


class Ticket:
    """What combine needs to find the rows of one dispatch again, and how often it has been combined."""

    def __init__(self, session: NativeSession, kind: Kind, dispatched: Dispatched, weights: torch.Tensor) -> None:
        self.session = session
        self.kind = kind
        self.dispatched = dispatched
        self.weights = weights
        self.combines = 0


class ExchangeSteps:
    """Dispatch and combine over one rank's windows."""

    def __init__(
        self, session: NativeSession, rank: int, windows: list[MappedWindow], layout: WindowLayout, dtype: torch.dtype
    ) -> None:
        """`windows` [ranks] stay mapped as long as this object lives, the own one as long as its tensors do too."""
        self.session = session
        self.observation = Observation()
        self.layout = layout
        self.dtype = dtype
        self._rank = rank
        self._windows = windows
        self._views = {
            (slot, part): self._view(windows[rank], slot, part)
            for slot in range(layout.parameters.slots)
            for part in Part
        }
        # The epoch whose rows lie in each half of a slot; the whole slot holds both.
        self._holders: dict[tuple[int, Part], int] = {}

    def dispatch(
        self, tokens: RoutedTokens, kind: Kind, part: Part = Part.WHOLE, *, continues: bool = False
    ) -> ExpertRows:
        """Places every routed row and waits for everyone's; see `Exchange.dispatch` and `NativeSession.dispatch`."""
        dispatch = self.session.prepare_dispatch(tokens.x, tokens.ids, kind, part, continues=continues)
        return self.received(dispatch, kind, tokens.weights, continues=continues)

    def received(
        self, dispatch: Callable[[], Dispatched], kind: Kind, weights: torch.Tensor, *, continues: bool = False
    ) -> ExpertRows:
        """Makes a prepared dispatch, observed, and returns its rows."""
        begun_ns = time.perf_counter_ns()
        dispatched = dispatch()
        for half in _HALVES[dispatched.part]:
            self._holders[dispatched.slot, half] = dispatched.epoch
        rows, scales, out = self._views[dispatched.slot, dispatched.part]
        self.observation.dispatched(
            kind, begun_ns, tokens=weights.shape[0], rows=dispatched.total, matrix=self.session.matrix,
            first_round=not continues,
        )  # fmt: skip
        return ExpertRows(rows, scales, dispatched.counts, out, Ticket(self.session, kind, dispatched, weights))

    def _view(
        self, window: MappedWindow, slot: int, part: Part
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Rows, scales and results of a slot or half of one."""
        p, offsets, capacity = self.layout.parameters, self.layout.offsets, self.layout.capacity
        begin = slot * capacity + (capacity // 2 if part is Part.SECOND_HALF else 0)
        count = capacity if part is Part.WHOLE else capacity // 2
        row_dtype = torch.int8 if p.quant else self.dtype
        rows = window.view(offsets.rows + begin * p.row_bytes, (count, p.hidden), row_dtype)
        out = window.view(offsets.out + begin * p.out_row_bytes, (count, p.hidden), self.dtype)
        if not p.quant:
            return rows, None, out
        # A scale lies at the beginning of a line of its own.
        lines = window.view(offsets.scales + begin * LINE_BYTES, (count, LINE_BYTES // 4), torch.float32)
        return rows, lines[:, 0], out

    def epochs(self) -> list[int]:
        """The epoch in the window of every rank."""
        return [int(window.view(self.layout.offsets.state, (1,), torch.int64)) for window in self._windows]

    def refuse(self, kind: Kind, problem: str) -> NoReturn:
        """Tells every rank that this one's arguments are invalid, then raises `InvalidInput` here as on the others."""
        with suppress(InvalidInput):
            self.session.refuse(kind, problem)
        raise InvalidInput(f"this rank ({self._rank}): {problem}")

    def combine(self, expert_out: torch.Tensor, rows: ExpertRows, out: torch.Tensor) -> None:
        """Reduces the experts' results into `out` [tokens, hidden]; see `Exchange.combine`."""
        begun_ns = time.perf_counter_ns()
        ticket: Ticket = rows.ticket
        dispatched = ticket.dispatched
        if ticket.session is not self.session:
            raise InvalidInput("these rows were dispatched by another Exchange; combine them there")
        if any(self._holders[dispatched.slot, half] != dispatched.epoch for half in _HALVES[dispatched.part]):
            raise InvalidInput(
                f"the rows of epoch {dispatched.epoch} are gone: slot {dispatched.slot} has been dispatched into "
                f"again; combine before the next dispatch, or create with more slots"
            )
        if ticket.combines == MAX_COMBINES:
            raise InvalidInput(f"one dispatch can be combined {MAX_COMBINES} times; dispatch again")
        if ticket.combines:
            self.session.rejoin(dispatched)
        ticket.combines += 1
        in_place = expert_out.data_ptr() == rows.out.data_ptr() and expert_out.stride() == rows.out.stride()
        if not in_place:
            # @protocol write-out. Experts that write rows.out in place do so before the first combine.
            rows.out[: dispatched.total].copy_(expert_out[: dispatched.total])
        self.session.combine(dispatched, ticket.weights, out)
        self.observation.combined(ticket.kind, begun_ns)
