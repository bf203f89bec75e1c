"""One exchange over the windows: the steps that both schedules are made of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING, NoReturn

import torch
from torch import Tensor

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.observation import Observation
from sglang_ascend_moe.exchange.schedules.inputs import RoutedTokens
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native.codes import Kind, Part
from sglang_ascend_moe.native.library import native_types
from sglang_ascend_moe.native.session import NativeSession
from sglang_ascend_moe.windows.layout import LINE_BYTES, WindowLayout
from sglang_ascend_moe.windows.window import Window

if TYPE_CHECKING:
    from sglang_ascend_moe._host_kernels import Call, Slots, Ticket

MAX_COMBINES = 2**15
"""Combines of one dispatch: the tag of a done word has 16 bits, and every combine but the first takes two."""


class ExchangeSteps:
    """Dispatch and combine over one rank's windows."""

    def __init__(
        self, session: NativeSession, rank: int, windows: Sequence[Window], layout: WindowLayout, dtype: torch.dtype
    ) -> None:
        """`windows` [ranks] stay mapped as long as this object lives, the own one as long as its tensors do too."""
        self.session = session
        self.observation = Observation(layout.parameters.ranks)
        self.layout = layout
        self.dtype = dtype
        self.device = windows[rank].device
        self._rank = rank
        self._windows = windows
        views = tuple(self._view(windows[rank], slot, part) for slot in range(layout.parameters.slots) for part in Part)
        self._slots: Slots = native_types().Slots(
            session, self.observation.counters, partial(session.new_call, layout.parameters.max_tokens), ExpertRows,
            _without_history, views, layout.capacity, layout.expert_rows,
        )  # fmt: skip
        self.dispatch_fitting = self._slots.dispatch_fitting

    def dispatch(
        self, tokens: RoutedTokens, kind: Kind, part: Part = Part.WHOLE, *, keep_weights: bool, continues: bool = False
    ) -> ExpertRows:
        """Places every routed row and waits for everyone's; see `Exchange.dispatch` and `Call.take`."""
        call = self._slots.free_call()
        call.take(*tokens, kind, part, keep_weights=keep_weights, continues=continues)
        return self.received(call, kind, part, tokens.weights, first_round=not continues)

    def dispatch_deferred(
        self, tokens: RoutedTokens, kind: Kind, *, most_rows: int = 0, planned_rows: int | None = None,
        continues: bool = False,
    ) -> ExpertRows:  # fmt: skip
        """`dispatch` that nobody waits for, into a whole slot; arguments as those of `received` and `Call.take`."""
        call = self.session.replayed_call(len(tokens.x))
        call.take(*tokens, kind, Part.WHOLE, keep_weights=False, continues=continues)
        return self.received(
            call, kind, Part.WHOLE, tokens.weights, first_round=not continues, most_rows=most_rows,
            planned_rows=planned_rows, wait=False,
        )  # fmt: skip

    def received(
        self, call: Call, kind: Kind, part: Part, weights: Tensor, *, first_round: bool = True, most_rows: int = 0,
        planned_rows: int | None = None, wait: bool = True,
    ) -> ExpertRows:  # fmt: skip
        """Dispatches a call that has taken its tokens, observed, and returns its rows.

        most_rows, wait: as for the session's `dispatch`. planned_rows: how many rows will have come, if that is known.
        """
        begun_ns = perf_counter_ns()
        self.session.dispatch(call, most_rows, wait=wait)
        capacity = self.layout.capacity if part is Part.WHOLE else self.layout.capacity // 2
        at_most = planned_rows if planned_rows is not None else most_rows or capacity
        return self._slots.hand_out(call, weights, kind, part, begun_ns, at_most, planned_rows or 0, first_round)

    def dispatch_send(self, tokens: RoutedTokens, kind: Kind = Kind.DECODE, *, row_bytes: int = 0) -> ExpertRows:
        """The first part of a dispatch: announces, and places every routed row. `dispatch_receive` follows.

        Of the result only `counts` and `ticket` mean anything until then. Other calls may be made in between, of this
        slot none. `row_bytes` as for `Call.take`. Weights and ids are those of combine.
        """
        begun_ns = perf_counter_ns()
        call = self._slots.free_call()
        call.take(*tokens, kind, Part.WHOLE, keep_weights=False, row_bytes=row_bytes)
        self.session.dispatch_send(call)
        return self._slots.hand_out(call, tokens.weights, kind, Part.WHOLE, begun_ns, 0, 0, True)

    def dispatch_receive(self, rows: ExpertRows) -> None:
        """The second part: waits until everyone's rows are there."""
        self.session.dispatch_receive(rows.ticket.call)

    def _view(self, window: Window, slot: int, part: Part) -> tuple[Tensor, Tensor | None, Tensor]:
        """Rows, scales and results of a slot or half of one."""
        p, offsets, capacity = self.layout.parameters, self.layout.offsets, self.layout.capacity
        begin = slot * capacity + (capacity // 2 if part is Part.SECOND_HALF else 0)
        count = capacity if part is Part.WHOLE else capacity // 2
        row_dtype = torch.int8 if p.quant else self.dtype
        rows = window.view(offsets.rows + begin * p.row_bytes, (count, p.hidden), row_dtype)
        out = window.view(offsets.out + begin * p.out_row_bytes, (count, p.hidden), self.dtype)
        scales = None
        if p.quant:
            lines = window.view(offsets.scales + begin * LINE_BYTES, (count, LINE_BYTES // 4), torch.float32)
            scales = lines.flatten()[:count] if self.session.packs_scales else lines[:, 0]
        return _without_history(rows, scales, out)

    def source_tokens(self, rows: ExpertRows) -> Tensor:
        """int32 [capacity]: which token of its source each row of a padded window is; a view, valid as long as rows."""
        capacity = self.layout.capacity
        begin = self.layout.offsets.scales + rows.ticket.slot * capacity * LINE_BYTES
        lines = self._windows[self._rank].view(begin, (capacity, LINE_BYTES // 4), torch.int32)
        return lines[:, 1]

    def epochs(self) -> list[int]:
        """The epoch in the window of every rank."""
        return [int(window.view(self.layout.offsets.state, (1,), torch.int64)) for window in self._windows]

    def refuse(self, kind: Kind, problem: str) -> NoReturn:
        """Tells every rank that this one's arguments are invalid, then raises `InvalidInput` here as on the others."""
        # Those whose phase is the other one are told of the mismatch; here it is what is wrong that counts.
        with suppress(InvalidInput, ProtocolMismatch):
            self.session.refuse(kind, problem)
        raise InvalidInput(f"this rank ({self._rank}): {problem}")

    def combine(self, expert_out: Tensor, rows: ExpertRows, out: Tensor, *, wait: bool = True) -> None:
        """Reduces the experts' results into `out` [tokens, hidden]; see `Exchange.combine`, and the session's for
        `wait`."""
        begun_ns = perf_counter_ns()
        self._begin_combine(rows)
        self._copy_results(expert_out, rows)
        self.session.combine(rows.ticket.call, out, wait=wait)
        self._slots.combined(rows.ticket, begun_ns, wait)

    def combine_fitting(self, rows: ExpertRows, out: Tensor) -> bool:
        """The first `combine` of results that are in place, if the kernels take `out` as it is; else False, and
        nothing has been done."""
        result = self._slots.combine_fitting(rows.ticket, out)
        if result:
            self.session.fail(result)
        return result is not None

    def combine_send(
        self, expert_out: Tensor, rows: ExpertRows, weights: Tensor | None = None, positions: Tensor | None = None
    ) -> None:
        """The first part of a combine: copies results that are not in place, and tells everyone that they are there.

        `combine_receive` follows; until then `rows.out` is not written, and no other combine of the handle begins.
        `weights` float32 and `positions` int64 [tokens, topk], contiguous, take the place of those of the dispatch;
        they are read by `combine_receive`.
        """
        self._begin_combine(rows)
        rows.ticket.call.take_routing(weights, positions)
        self._copy_results(expert_out, rows)
        self.session.combine_send(rows.ticket.call)

    def combine_receive(self, rows: ExpertRows, out: Tensor) -> None:
        """The second part: waits for everyone's results and reduces them into `out` [tokens, hidden]."""
        begun_ns = perf_counter_ns()
        self.session.combine_receive(rows.ticket.call, out)
        self._slots.combined(rows.ticket, begun_ns, True)

    def rejoin(self, rows: ExpertRows) -> None:
        """Makes `rows.out` writable again after a combine: waits until every rank begins its next one.

        Nothing if it was not combined, or this was done already.
        """
        ticket = self._held_ticket(rows)
        if ticket.combines and not ticket.rejoined:
            self.session.rejoin(ticket.call)
            ticket.rejoined = True

    def _begin_combine(self, rows: ExpertRows) -> None:
        ticket = self._held_ticket(rows)
        if ticket.combines == MAX_COMBINES:
            raise InvalidInput(f"one dispatch can be combined {MAX_COMBINES} times; dispatch again")
        self.rejoin(rows)
        ticket.combines += 1
        ticket.rejoined = False

    def _held_ticket(self, rows: ExpertRows) -> Ticket:
        ticket: Ticket = rows.ticket
        if ticket.session is not self.session:
            raise InvalidInput("these rows were dispatched by another Exchange; combine them there")
        if not self._slots.holds(ticket):
            raise InvalidInput(
                f"the rows of epoch {ticket.epoch} are gone: slot {ticket.slot} has been dispatched into "
                f"again; combine before the next dispatch, or create with more slots"
            )
        return ticket

    def _copy_results(self, expert_out: Tensor, rows: ExpertRows) -> None:
        if _in_place(expert_out, rows.out):
            return
        expert_out = expert_out.detach()
        pitch, total = self.layout.expert_rows, rows.ticket.total
        # @protocol write-out. Experts that write rows.out in place do so before the first combine.
        if not pitch:
            rows.out[:total].copy_(expert_out[:total])
            return
        for expert, count in enumerate(rows.counts.tolist()):
            begin = expert * pitch
            rows.out[begin : begin + count].copy_(expert_out[begin : begin + count])


def _without_history(rows: Tensor, scales: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """The same memory as tensors that are views of none, so that what is written into one stays with it."""
    return rows.detach(), None if scales is None else scales.detach(), out.detach()


def _in_place(expert_out: Tensor, out: Tensor) -> bool:
    """Whether the results lie where combine reads them."""
    return expert_out is out or (expert_out.data_ptr() == out.data_ptr() and expert_out.stride() == out.stride())
