"""DeepEP's low-latency mode: the decode schedule over a padded window with two slots, in two parts each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglang_ascend_moe.deep_ep.buffer_config import LOW_LATENCY_SLOTS, low_latency_parameters
from sglang_ascend_moe.deep_ep.buffer_windows import Windows
from sglang_ascend_moe.deep_ep.fp8 import Fp8Format
from sglang_ascend_moe.deep_ep.group import RankGroup
from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch, WindowTooSmall
from sglang_ascend_moe.exchange.schedules.inputs import RoutedTokens, problem_with_result, routed_tokens
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.native.codes import Kind
from sglang_ascend_moe.windows.layout import ExchangeParameters, plan_window


class LowLatencyHandle(tuple[Any, ...]):
    """What DeepEP's clients unpack: (source tokens int32 [experts, rows], ranges int64 [experts, ranks], most tokens
    per rank, hidden, num_experts). A range is begin << 32 | count of the rows that an expert has from a rank."""

    _dispatched: Dispatched


class Dispatched:
    """A dispatch that has been sent."""

    def __init__(self, steps: ExchangeSteps, rows: ExpertRows, ids: Tensor) -> None:
        self.steps = steps
        self.rows = rows
        self.ids = ids
        self.received = False
        self.combining = False
        self.reading: tuple[Tensor, ...] = ()
        """What the combine that was sent reads where it is."""
        self.counts = rows.counts.to(torch.int32)


class LowLatencyResult(NamedTuple):
    rows: Tensor
    scales: Tensor | None
    counts: Tensor
    handle: LowLatencyHandle
    receive: Callable[[], None]


class LowLatency:
    """Low-latency calls of one Buffer. Every rank makes the same ones in the same order."""

    def __init__(self, group: RankGroup, room_bytes: int) -> None:
        self._group = group
        self._room_bytes = room_bytes
        self._windows = Windows(group.group)
        self._live: list[Dispatched | None] = [None] * LOW_LATENCY_SLOTS

    def close(self) -> None:
        self._windows.close()

    def require_room(self, parameters: ExchangeParameters) -> None:
        """Raises `WindowTooSmall` if the Buffer was made with fewer bytes than the window of `parameters` has."""
        needed = plan_window(parameters).total_bytes
        if needed > self._room_bytes:
            raise WindowTooSmall(
                f"num_rdma_bytes={self._room_bytes} cannot hold {parameters.max_tokens} tokens of "
                f"{parameters.hidden} elements of each of {parameters.ranks} ranks for each of "
                f"{parameters.local_experts} experts; num_rdma_bytes={needed} is needed "
                f"(Buffer.get_low_latency_rdma_size_hint)"
            )

    def dispatch(
        self,
        x: Tensor,
        topk_idx: Tensor,
        max_tokens: int,
        num_experts: int,
        fp8: Fp8Format | None,
        statistics: Tensor | None,
        wait_statistics: Tensor | None,
    ) -> LowLatencyResult:
        """Sends; `receive` of the result receives, once. See `Buffer.low_latency_dispatch`."""
        steps = self._open(x, topk_idx, max_tokens, num_experts)
        p = steps.layout.parameters
        weights = torch.empty(topk_idx.shape)
        tokens = routed_tokens(x, topk_idx, weights, hidden=p.hidden, topk=p.topk, dtype=torch.bfloat16)
        if isinstance(tokens, str):
            problem = tokens.replace("topk_ids", "topk_idx")
            steps.refuse(_kind(fp8), problem)
        if what := self._problem_with_statistics(p, statistics, wait_statistics) or self._unfinished():
            steps.refuse(_kind(fp8), what)

        waited = steps.session.waited_s
        rows = _send(steps, tokens, fp8)
        sent = Dispatched(steps, rows, topk_idx.clone())
        self._live[rows.ticket.slot] = sent
        shape = (p.local_experts, p.expert_rows)
        window = rows.rows.view(*shape, p.hidden)
        scales = None if fp8 is None else fp8.new_scales(*shape)

        def receive() -> None:
            if sent.received:
                return
            steps.dispatch_receive(rows)
            sent.received = True
            if fp8 is not None and scales is not None:
                for expert, count in enumerate(sent.counts.tolist()):
                    fp8.read_scales(window[expert, :count], scales[expert, :count])
            if statistics is not None:
                statistics.add_(sent.counts)
            self._add_waits(wait_statistics, steps, waited)

        handle = LowLatencyHandle(
            (steps.source_tokens(rows).view(shape), _ranges(steps), max_tokens, p.hidden, num_experts)
        )
        handle._dispatched = sent
        return LowLatencyResult(window if fp8 is None else fp8.values(window), scales, sent.counts, handle, receive)

    def combine(
        self,
        x: Tensor,
        topk_idx: Tensor,
        topk_weights: Tensor,
        handle: LowLatencyHandle,
        zero_copy: bool,
        out: Tensor | None,
        wait_statistics: Tensor | None,
    ) -> tuple[Tensor, Callable[[], None]]:
        """Sends; the second of the result receives into the first, once. See `Buffer.low_latency_combine`."""
        sent = self._usable(handle, "low_latency_combine")
        steps, rows = sent.steps, sent.rows
        call, p = rows.ticket.call, steps.layout.parameters
        shape = (p.local_experts, p.expert_rows, p.hidden)
        if x.shape != shape or x.dtype is not torch.bfloat16 or not x.is_cpu:
            raise InvalidInput(f"x is {tuple(x.shape)} of {x.dtype} on {x.device}; it must be {shape} of bfloat16")
        if topk_idx.shape != sent.ids.shape or topk_weights.shape != sent.ids.shape:
            raise InvalidInput(
                f"topk_idx is {tuple(topk_idx.shape)}, topk_weights {tuple(topk_weights.shape)}; both must be "
                f"{tuple(sent.ids.shape)}, as at the dispatch"
            )
        dropped = topk_idx < 0
        if not torch.equal(sent.ids.masked_fill(dropped, -1), topk_idx.to(sent.ids.dtype).masked_fill(dropped, -1)):
            raise InvalidInput("topk_idx names other experts than at the dispatch; only -1 may come in addition")
        if out is None:
            out = torch.empty(len(sent.ids), p.hidden, dtype=torch.bfloat16)
        if problem := problem_with_result(out, tokens=len(sent.ids), hidden=p.hidden, dtype=torch.bfloat16):
            raise InvalidInput(problem)
        if problem := self._problem_with_statistics(p, None, wait_statistics):
            raise InvalidInput(problem)

        weights = topk_weights.to(torch.float32).contiguous()
        positions = call.positions[: len(sent.ids)].masked_fill(dropped, -1)
        waited = steps.session.waited_s
        steps.combine_send(rows.out if zero_copy else x.flatten(0, 1), rows, weights, positions)
        sent.combining, sent.reading = True, (weights, positions)
        result = out

        def receive() -> None:
            if not sent.combining:
                return
            steps.combine_receive(rows, result)
            sent.combining, sent.reading = False, ()
            self._add_waits(wait_statistics, steps, waited)

        return out, receive

    def next_combine_buffer(self, handle: LowLatencyHandle) -> Tensor:
        """See `Buffer.get_next_low_latency_combine_buffer`."""
        sent = self._usable(handle, "get_next_low_latency_combine_buffer")
        sent.steps.rejoin(sent.rows)
        p = sent.steps.layout.parameters
        return sent.rows.out.view(p.local_experts, p.expert_rows, p.hidden)

    def _open(self, x: Tensor, topk_idx: Tensor, max_tokens: int, num_experts: int) -> ExchangeSteps:
        if x.dim() != 2 or topk_idx.dim() != 2:
            raise InvalidInput(f"x is {tuple(x.shape)}, topk_idx {tuple(topk_idx.shape)}; both have two dimensions")
        parameters = low_latency_parameters(
            self._group.size, x.shape[1], max_tokens, num_experts, topk=topk_idx.shape[1]
        )
        self.require_room(parameters)
        before = self._windows.steps
        steps = self._windows.open(parameters)
        if steps is not before:
            self._live = [None] * LOW_LATENCY_SLOTS
        return steps

    def _unfinished(self) -> str | None:
        """What keeps the next slot from being dispatched into."""
        held = [sent for sent in self._live if sent is not None]
        if len(held) < LOW_LATENCY_SLOTS:
            return None
        oldest = min(held, key=lambda sent: sent.rows.ticket.epoch)
        if not oldest.received:
            return "the hook of the dispatch before the last one has not been called; only two can be open"
        if oldest.combining:
            return "the hook of a combine of the dispatch before the last one has not been called"
        return None

    def _usable(self, handle: LowLatencyHandle, call: str) -> Dispatched:
        if not isinstance(handle, LowLatencyHandle):
            raise InvalidInput(f"handle of {call} is {type(handle).__name__}; it must be one of low_latency_dispatch")
        sent = handle._dispatched
        if sent.steps is not self._windows.steps:
            raise InvalidInput(f"handle of {call} belongs to windows that have been closed or opened anew")
        if not sent.received:
            raise InvalidInput(f"{call} before the hook of its dispatch was called")
        if sent.combining:
            raise InvalidInput(f"{call} before the hook of the combine before was called")
        return sent

    def _problem_with_statistics(
        self, p: ExchangeParameters, statistics: Tensor | None, waits: Tensor | None
    ) -> str | None:
        if statistics is not None and (statistics.shape != (p.local_experts,) or statistics.dtype is not torch.int32):
            return (
                f"cumulative_local_expert_recv_stats is {tuple(statistics.shape)} of {statistics.dtype}; "
                f"it must be ({p.local_experts},) of torch.int32"
            )
        shapes = [(p.ranks,), (p.ranks, p.ranks)]
        if waits is not None and (tuple(waits.shape) not in shapes or waits.dtype is not torch.int64):
            return (
                f"the wait statistics are {tuple(waits.shape)} of {waits.dtype}; they must be {shapes} of torch.int64"
            )
        return None

    def _add_waits(self, waits: Tensor | None, steps: ExchangeSteps, before: list[float]) -> None:
        """Nanoseconds for which each rank held this one up since `before`."""
        if waits is None:
            return
        own = waits[self._group.rank] if waits.dim() == 2 else waits
        held_up = [now - then for now, then in zip(steps.session.waited_s, before, strict=True)]
        own.add_(torch.tensor([int(seconds * 1e9) for seconds in held_up]))


def _kind(fp8: Fp8Format | None) -> Kind:
    """By its kind ranks that send rows of different formats find out before a row moves."""
    return Kind.DECODE if fp8 is None else Kind.PREFILL


def _send(steps: ExchangeSteps, tokens: RoutedTokens, fp8: Fp8Format | None) -> ExpertRows:
    try:
        if fp8 is None:
            return steps.dispatch_send(tokens, _kind(fp8))
        packed = RoutedTokens(fp8.pack(tokens.x), tokens.ids, tokens.weights)
        return steps.dispatch_send(packed, _kind(fp8), row_bytes=fp8.row_bytes)
    except ProtocolMismatch as error:
        raise ProtocolMismatch(f"use_fp8={fp8 is not None} here, and not on every rank") from error


def _ranges(steps: ExchangeSteps) -> Tensor:
    """int64 [experts of this rank, ranks]; see `LowLatencyHandle`."""
    counts = steps.session.received.t().to(torch.int64)
    return (counts.cumsum(1) - counts) << 32 | counts
