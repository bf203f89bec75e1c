"""One exchange over the windows: the steps that both schedules are made of."""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple, NoReturn

import torch

from sglang_ascend_moe.codes import Kind, Part
from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.native import Dispatched, NativeSession
from sglang_ascend_moe.schedules.rows import ExpertRows
from sglang_ascend_moe.windows.host import MappedWindow
from sglang_ascend_moe.windows.layout import LINE_BYTES, WindowLayout

MAX_COMBINES = 2**15
"""Combines of one dispatch: the tag of a done word has 16 bits, and every combine but the first takes two."""


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

    def __init__(self, session: NativeSession, dispatched: Dispatched, weights: torch.Tensor) -> None:
        self.session = session
        self.dispatched = dispatched
        self.weights = weights
        self.combines = 0


class ExchangeSteps:
    """Dispatch and combine over one rank's windows."""

    def __init__(
        self, session: NativeSession, rank: int, windows: list[MappedWindow], layout: WindowLayout, dtype: torch.dtype
    ) -> None:
        """`windows` [ranks] stay mapped as long as this object lives, the own one as long as its tensors do too."""
        p = layout.parameters
        window = windows[rank]
        self.session = session
        self.layout = layout
        self.dtype = dtype
        self._rank = rank
        self._windows = windows
        shape = (p.slots, layout.capacity, p.hidden)
        self._rows = window.view(layout.offsets.rows, shape, torch.int8 if p.quant else dtype)
        self._out = window.view(layout.offsets.out, shape, dtype)
        # A scale lies at the beginning of a line of its own.
        scale_lines = (p.slots, layout.capacity, LINE_BYTES // 4)
        self._scales = window.view(layout.offsets.scales, scale_lines, torch.float32)[..., 0] if p.quant else None
        self._holders: dict[tuple[int, Part], int] = {}

    def dispatch(
        self, tokens: RoutedTokens, kind: Kind, part: Part = Part.WHOLE, *, continues: bool = False
    ) -> ExpertRows:
        """Places every routed row and waits for everyone's; see `Exchange.dispatch` and `NativeSession.dispatch`."""
        dispatched = self.session.dispatch(tokens.x, tokens.ids, kind, part, continues=continues)
        slot, begin = dispatched.slot, dispatched.first_row
        end = begin + (self.layout.capacity if part is Part.WHOLE else self.layout.capacity // 2)
        for held in Part:
            if part is Part.WHOLE or held in (part, Part.WHOLE):
                self._holders.pop((slot, held), None)
        self._holders[slot, part] = dispatched.epoch
        return ExpertRows(
            rows=self._rows[slot, begin:end],
            scales=None if self._scales is None else self._scales[slot, begin:end],
            counts=dispatched.counts,
            out=self._out[slot, begin:end],
            ticket=Ticket(self.session, dispatched, tokens.weights),
        )

    def refuse(self, kind: Kind, problem: str) -> NoReturn:
        """Tells every rank that this one's arguments are invalid, then raises `InvalidInput` here as on the others."""
        with suppress(InvalidInput):
            self.session.refuse(kind, problem)
        raise InvalidInput(f"this rank ({self._rank}): {problem}")

    def combine(self, expert_out: torch.Tensor, rows: ExpertRows, out: torch.Tensor) -> None:
        """Reduces the experts' results into `out` [tokens, hidden]; see `Exchange.combine`."""
        ticket: Ticket = rows.ticket
        dispatched = ticket.dispatched
        if ticket.session is not self.session:
            raise InvalidInput("these rows were dispatched by another Exchange; combine them there")
        if self._holders.get((dispatched.slot, dispatched.part)) != dispatched.epoch:
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
