"""DeepEP's `Buffer`."""

# DeepEP's arguments that have no effect here; docs/deep-ep.md lists them.
# ruff: noqa: ARG002, ARG004

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.deep_ep.buffer_config import Config, low_latency_parameters
from sglang_ascend_moe.deep_ep.events import EventHandle, EventOverlap
from sglang_ascend_moe.deep_ep.fp8 import Fp8Format
from sglang_ascend_moe.deep_ep.group import RankGroup
from sglang_ascend_moe.deep_ep.handles import NormalHandle
from sglang_ascend_moe.deep_ep.low_latency import LowLatency, LowLatencyHandle
from sglang_ascend_moe.deep_ep.normal import Normal
from sglang_ascend_moe.deep_ep.normal_inputs import DispatchInput, split_rows
from sglang_ascend_moe.deep_ep.rank_routing import dispatch_layout
from sglang_ascend_moe.errors import InvalidInput, PeerLost, ProtocolMismatch, SessionPoisoned, Unsupported
from sglang_ascend_moe.native.faults import refuse_forked
from sglang_ascend_moe.windows.layout import plan_window

Hook = Callable[[], None]


class Buffer:
    """DeepEP's Buffer over relay-free windows: the same calls, on the host's windows and CPU tensors.

    Windows are made when a call first needs them. Every rank of the group makes the same calls in the same order, ranks
    without tokens included. Calls are done when they return; with `return_recv_hook` what waits for other ranks is done
    by the hook. `async_finish`, `previous_event` and `allocate_on_comm_stream` change nothing: there are no streams.
    Errors are those of `Exchange`.
    """

    num_sms: int = 20

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        num_nvl_bytes: int = 0,
        num_rdma_bytes: int = 0,
        low_latency_mode: bool = False,
        num_qps_per_rank: int = 24,
        allow_nvlink_for_low_latency_mode: bool = True,
        allow_mnnvl: bool = False,
        use_fabric: bool = False,
        explicitly_destroy: bool = False,
        enable_shrink: bool = False,
        comm: object = None,
    ) -> None:
        """Makes no window yet; every rank gives the same sizes and mode.

        group: a gloo group. num_nvl_bytes, num_rdma_bytes: the most that the window of normal and of low-latency mode
        may take of each rank. explicitly_destroy: the Buffer lives until `destroy`. enable_shrink: the mask calls
        answer either way; a rank that has ended is not left out. comm: refused. The others have no effect.
        """
        if comm is not None:
            raise Unsupported("comm: an MPI communicator is not supported; pass group")
        if group is None:
            raise InvalidInput("group is None; pass a gloo group of torch.distributed")
        self.group = group
        self.num_nvl_bytes = num_nvl_bytes
        self.num_rdma_bytes = num_rdma_bytes
        self.low_latency_mode = low_latency_mode
        self.explicitly_destroy = explicitly_destroy
        self.enable_shrink = enable_shrink
        self._ranks = RankGroup(group)
        self.rank = self._ranks.rank
        self.group_size = self._ranks.size
        self._normal = Normal(self._ranks, num_nvl_bytes)
        self._low_latency = LowLatency(self._ranks, num_rdma_bytes)
        self._process = os.getpid()
        self._destroyed = False
        self._require_equal("num_nvl_bytes", num_nvl_bytes)
        self._require_equal("num_rdma_bytes", num_rdma_bytes)
        self._require_equal("low_latency_mode", int(low_latency_mode))

    def destroy(self) -> None:
        """Gives up the windows; needs `explicitly_destroy=True`. Views of them stay readable."""
        if not self.explicitly_destroy:
            raise InvalidInput("destroy() needs Buffer(explicitly_destroy=True); else it is done with the last use")
        self._close()

    def __del__(self) -> None:
        # A constructor that raised may have left nothing to close.
        if not getattr(self, "_destroyed", True) and not self.explicitly_destroy:
            self._close()

    @staticmethod
    def is_sm90_compiled() -> bool:
        """True: what DeepEP makes depend on it, rows in fp8, is there."""
        return True

    @staticmethod
    def set_num_sms(new_num_sms: int) -> None:
        """Kept in `Buffer.num_sms`, an even number; it tunes only `Config` and its size hint."""
        if new_num_sms % 2:
            raise InvalidInput(f"num_sms={new_num_sms} is not even")
        Buffer.num_sms = new_num_sms

    @staticmethod
    def capture() -> EventOverlap:
        """An event that has happened."""
        return EventOverlap(EventHandle())

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        """The bytes of each rank's window in low-latency mode, whatever the top-k; exactly what will be mapped."""
        parameters = low_latency_parameters(num_ranks, hidden, num_max_dispatch_tokens_per_rank, num_experts, topk=1)
        return plan_window(parameters).total_bytes

    @staticmethod
    def get_dispatch_config(num_ranks: int) -> Config:
        """A `Config`; the same for any number of ranks."""
        return Config(num_sms=Buffer.num_sms)

    @staticmethod
    def get_combine_config(num_ranks: int) -> Config:
        """As `get_dispatch_config`."""
        return Config(num_sms=Buffer.num_sms)

    def get_comm_stream(self) -> torch.cpu.Stream:
        """The stream of the host, on which everything is done already."""
        return torch.cpu.Stream()

    def get_local_buffer_tensor(self, *arguments: Any, **options: Any) -> NoReturn:
        """Refused: a window holds words of the protocol, and its rows belong to the handle of a dispatch."""
        raise Unsupported(
            "get_local_buffer_tensor: a window has no raw bytes to hand out; low_latency_dispatch and "
            "get_next_low_latency_combine_buffer return views of its rows"
        )

    def get_dispatch_layout(
        self,
        topk_idx: Tensor,
        num_experts: int,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, None, Tensor, Tensor, EventOverlap]:
        """Where topk_idx [tokens, topk] (-1: none) sends its tokens, on this rank alone.

        Returns tokens per rank int32 [ranks], None (there is no RDMA), tokens per expert int32 [num_experts], whether a
        token goes to a rank bool [tokens, ranks], and an event.
        """
        layout = dispatch_layout(topk_idx, self.group_size, num_experts)
        return layout.tokens_per_rank, None, layout.tokens_per_expert, layout.in_rank, self.capture()

    def dispatch(
        self,
        x: Tensor | tuple[Tensor, Tensor],
        handle: tuple[Any, ...] | None = None,
        num_tokens_per_rank: Tensor | None = None,
        num_tokens_per_rdma_rank: Tensor | None = None,
        is_token_in_rank: Tensor | None = None,
        num_tokens_per_expert: Tensor | None = None,
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        expert_alignment: int = 1,
        num_worst_tokens: int = 0,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | None, Tensor | None, list[int] | None, Any, EventOverlap]:
        """Sends a token once to every rank that holds one of its experts.

        x: [tokens, hidden] bfloat16, or float8_e4m3fn with scales [tokens, hidden / 128] float32 (or hidden / 512
        int32). With `handle`, x takes the way of an earlier dispatch, and the two top-k tensors are not given.
        expert_alignment: the counts that are returned are rounded up to it. num_worst_tokens: rows of the results, ids
        past those that arrived being -1; the list of counts is then empty. config: no effect.

        Returns rows, by source rank and token, which belong to the caller; ids counted from this rank's first expert,
        -1 for experts elsewhere; weights, 0 there; rows for each expert of this rank; a handle; an event. With `handle`
        the four in the middle are None.
        """
        self._require_open()
        if num_tokens_per_rdma_rank is not None:
            raise Unsupported("num_tokens_per_rdma_rank: all ranks are on one host; get_dispatch_layout returns None")
        rows, scales = split_rows(x)
        if handle is not None:
            return self._dispatch_again(rows, scales, handle, topk_idx, topk_weights, num_worst_tokens)
        if num_tokens_per_rank is None or is_token_in_rank is None or num_tokens_per_expert is None:
            raise InvalidInput(
                "without handle, dispatch needs num_tokens_per_rank, is_token_in_rank and num_tokens_per_expert of "
                "get_dispatch_layout"
            )
        if expert_alignment < 1 or num_worst_tokens < 0:
            raise InvalidInput(
                f"expert_alignment={expert_alignment}, num_worst_tokens={num_worst_tokens} are too small"
            )
        given = DispatchInput(
            rows, scales, num_tokens_per_rank, is_token_in_rank, num_tokens_per_expert, topk_idx, topk_weights
        )
        done = self._normal.dispatch(given, expert_alignment=expert_alignment, worst_tokens=num_worst_tokens)
        moved = done.rows if done.scales is None else (done.rows, done.scales)
        return moved, done.ids, done.weights, done.tokens_per_expert, done.handle, self.capture()

    def _dispatch_again(
        self, rows: Tensor, scales: Tensor | None, handle: tuple[Any, ...], topk_idx: Tensor | None,
        topk_weights: Tensor | None, num_worst_tokens: int,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], None, None, None, None, EventOverlap]:  # fmt: skip
        if topk_idx is not None or topk_weights is not None:
            raise InvalidInput("topk_idx and topk_weights cannot be given with handle")
        if num_worst_tokens:
            raise InvalidInput("num_worst_tokens cannot be given with handle, which knows how many tokens arrive")
        moved, moved_scales = self._normal.dispatch_again(rows, scales, _normal_handle(handle))
        return moved if moved_scales is None else (moved, moved_scales), None, None, None, None, self.capture()

    def combine(
        self,
        x: Tensor,
        handle: tuple[Any, ...],
        topk_weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None,
        config: Config | None = None,
        previous_event: EventOverlap | None = None,
        async_finish: bool = False,
        allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, EventOverlap]:
        """Sums each token's rows over the ranks it was sent to, without weights.

        x: [rows of the dispatch, hidden] bfloat16. topk_weights: [rows of the dispatch, topk], summed likewise. bias:
        one or two [tokens, hidden] bfloat16, added to the sums after they were rounded. Sums are made in float32, in
        the order of ranks. Returns [tokens, hidden] bfloat16, float32 [tokens, topk] or None, and an event.
        """
        self._require_open()
        rows, scales = split_rows(x)
        if scales is not None:
            raise InvalidInput("x of combine is a tensor of bfloat16 rows; it has no scales")
        terms = () if bias is None else bias if isinstance(bias, tuple) else (bias,)
        combined, weights = self._normal.combine(rows, _normal_handle(handle), topk_weights, terms)
        return combined, weights, self.capture()

    def clean_low_latency_buffer(self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int) -> None:
        """Nothing to clean: words carry the epoch they belong to. Refuses what would not fit `num_rdma_bytes`."""
        self._require_low_latency()
        self._low_latency.require_room(
            low_latency_parameters(self.group_size, hidden, num_max_dispatch_tokens_per_rank, num_experts, topk=1)
        )

    def low_latency_dispatch(
        self,
        x: Tensor,
        topk_idx: Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        cumulative_local_expert_recv_stats: Tensor | None = None,
        dispatch_wait_recv_cost_stats: Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor, Any, EventOverlap, Hook | None]:
        """Sends every token to each of its experts, straight into the window of the rank that holds it.

        x: [tokens, hidden] bfloat16, at most num_max_dispatch_tokens_per_rank. topk_idx: [tokens, topk], distinct in a
        token, -1: none. cumulative_local_expert_recv_stats: int32 [experts of this rank], added to.
        dispatch_wait_recv_cost_stats: int64 [ranks] or [ranks, ranks] (own line), nanoseconds added to. use_fp8: rows
        travel as float8_e4m3fn with a scale for 128 elements, see `fp8`; round_scale, use_ue8m0 as there.
        return_recv_hook: this call announces and places rows, the hook waits for those of the others.

        Returns rows [experts of this rank, ranks * num_max_dispatch_tokens_per_rank, hidden], in source rank and token
        order, a view of the window until the next dispatch but one (with use_fp8 a pair with scales, column-major);
        valid rows per expert int32; a handle; an event; the hook or None. Rows past the valid ones are undefined.
        """
        self._require_low_latency()
        _refuse_both(async_finish, return_recv_hook)
        if not use_fp8 and (round_scale or use_ue8m0):
            raise InvalidInput("round_scale and use_ue8m0 need use_fp8=True")
        fp8 = Fp8Format(x.shape[-1], round_scale=round_scale, use_ue8m0=use_ue8m0) if use_fp8 else None
        sent = self._low_latency.dispatch(
            x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts, fp8, cumulative_local_expert_recv_stats,
            dispatch_wait_recv_cost_stats,
        )  # fmt: skip
        rows = sent.rows if sent.scales is None else (sent.rows, sent.scales)
        return rows, sent.counts, sent.handle, self.capture(), _now_or_later(sent.receive, return_recv_hook)

    def low_latency_combine(
        self,
        x: Tensor,
        topk_idx: Tensor,
        topk_weights: Tensor,
        handle: Any,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: Tensor | None = None,
        combine_wait_recv_cost_stats: Tensor | None = None,
    ) -> tuple[Tensor, EventOverlap, Hook | None]:
        """Each token's weighted sum over its experts' results, which are read where the experts wrote them.

        x: results as the rows of the dispatch, bfloat16; with zero_copy they are in
        `get_next_low_latency_combine_buffer` instead, and x is not read. topk_idx: as at the dispatch; a -1 in addition
        leaves that expert out. topk_weights: [tokens, topk]. use_logfmt: no effect, results travel as they are. out:
        where the sums are written. return_recv_hook: this call tells the others that the results are there, the hook
        waits for theirs and sums. A handle may be combined again. Sums are made as `Exchange.combine` makes them.

        Returns [tokens, hidden] bfloat16, an event, the hook or None.
        """
        self._require_low_latency()
        _refuse_both(async_finish, return_recv_hook)
        combined, receive = self._low_latency.combine(
            x, topk_idx, topk_weights, handle, zero_copy, out, combine_wait_recv_cost_stats
        )
        return combined, self.capture(), _now_or_later(receive, return_recv_hook)

    def get_next_low_latency_combine_buffer(self, handle: Any) -> Tensor:
        """The rows of the window that `low_latency_combine(zero_copy=True)` sends: [experts, rows, hidden] bfloat16.

        Once the handle has been combined, this waits until every rank begins its next combine of it, for they may still
        read the rows.
        """
        self._require_low_latency()
        return self._low_latency.next_combine_buffer(handle)

    def low_latency_query_mask_buffer(self, mask_status: Tensor) -> None:
        """Writes 1 into mask_status int32 [ranks] for each rank whose process has ended, else 0."""
        if mask_status.shape != (self.group_size,) or mask_status.dtype is not torch.int32:
            raise InvalidInput(
                f"mask_status is {tuple(mask_status.shape)} of {mask_status.dtype}; it must be ({self.group_size},)"
            )
        self._require_open()
        mask_status.copy_(torch.tensor(self._ranks.ended(), dtype=torch.int32))

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Masks are what `low_latency_query_mask_buffer` finds: any other one is refused."""
        self._require_open()
        if not 0 <= rank_to_mask < self.group_size:
            raise InvalidInput(f"rank_to_mask={rank_to_mask} is outside 0 .. {self.group_size - 1}")
        if mask and not self._ranks.ended()[rank_to_mask]:
            raise Unsupported(f"rank_to_mask={rank_to_mask}, mask=True: an exchange cannot leave out a rank that lives")
        if not mask and self._ranks.ended()[rank_to_mask]:
            _refuse_unmasking(rank_to_mask)

    def low_latency_clean_mask_buffer(self) -> None:
        """Raises `PeerLost` if a rank has ended, whose mask cannot be cleaned; else no rank is masked."""
        self._require_open()
        for rank, ended in enumerate(self._ranks.ended()):
            if ended:
                _refuse_unmasking(rank)

    def _close(self) -> None:
        self._destroyed = True
        self._normal.close()
        self._low_latency.close()
        self._ranks.close()

    def _require_open(self) -> None:
        if self._destroyed:
            raise SessionPoisoned("this Buffer was destroyed; make a new one")
        if os.getpid() != self._process:
            refuse_forked()

    def _require_low_latency(self) -> None:
        self._require_open()
        if not self.low_latency_mode:
            raise InvalidInput("low-latency calls need Buffer(low_latency_mode=True)")

    def _require_equal(self, name: str, value: int) -> None:
        values = self._ranks.gather(torch.tensor([value]))[:, 0].tolist()
        for rank, other in enumerate(values):
            if other != values[0]:
                raise ProtocolMismatch(f"Buffer: {name} is {values[0]} on rank 0 and {other} on rank {rank}")


def _normal_handle(handle: tuple[Any, ...]) -> NormalHandle:
    if not isinstance(handle, NormalHandle):
        kind = "low_latency_dispatch" if isinstance(handle, LowLatencyHandle) else type(handle).__name__
        raise InvalidInput(f"handle is one of {kind}; it must be one of Buffer.dispatch")
    return handle


def _refuse_unmasking(rank: int) -> NoReturn:
    raise PeerLost(f"rank {rank} has ended and cannot be unmasked; make a Buffer of another group", rank)


def _refuse_both(async_finish: bool, return_recv_hook: bool) -> None:
    if async_finish and return_recv_hook:
        raise InvalidInput("async_finish=True and return_recv_hook=True exclude each other")


def _now_or_later(receive: Hook, later: bool) -> Hook | None:
    if later:
        return receive
    receive()
    return None
