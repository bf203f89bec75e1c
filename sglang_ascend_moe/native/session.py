"""A rank's open exchange: its calls into the kernels, and what becomes of a fault."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple, NoReturn, Protocol
from weakref import WeakSet

import torch

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.native.codes import InputError, Kind, Region, Result, Step
from sglang_ascend_moe.native.faults import Fault, fault_error, refuse_forked
from sglang_ascend_moe.native.library import library, native_layout
from sglang_ascend_moe.windows.layout import WindowLayout

if TYPE_CHECKING:
    from sglang_ascend_moe._host_kernels import Call

StepHook = Callable[[Step], None]
FaultHook = Callable[[Fault, BaseException], None]


class Ring(Protocol):
    """Memory for an ExchangeTrace, at `address`, as long as the object lives."""

    address: int


class ChunkCounts(NamedTuple):
    """Rows that each chunk of tokens sends to each rank: `rows` [chunks, ranks]; or why they cannot be counted."""

    rows: list[list[int]]
    error: InputError
    detail: int


class TensorsOfCall(NamedTuple):
    """What a call writes, for at most `tokens` tokens.

    positions [tokens, topk] int64: destination rank << 32 | row, or -1; weights [tokens, topk] float32, where they are
    kept; counts [experts of this rank] int64.
    """

    positions: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor


def initialise_window(layout: WindowLayout, address: int, device: str = "cpu", *, first_epoch: int = 0) -> None:
    """Prepares this rank's own window before any peer uses it; zeroed already, where it is memory of the host.

    `first_epoch` exchanges are behind it.

    Raises `Unsupported` if the kernels cannot serve windows of this layout.
    """
    kernels, described = library(device), native_layout(layout)
    if (refusal := kernels.refuse_layout(described)) is not None:
        raise Unsupported(refusal)
    kernels.initialise_window(described, address, first_epoch)


class NativeSession:
    """One rank's open exchange, as the kernels see it. Not thread-safe."""

    takes_host_tensors: ClassVar[bool] = True
    packs_scales: ClassVar[bool] = False
    """Whether a dispatch leaves the scales of int8 rows one after the other, not each at the beginning of a line."""
    unverified: bool = False
    """Whether nobody has asked what calls found that nobody waited for, replays included."""

    def __init__(
        self,
        layout: WindowLayout,
        rank: int,
        window_addresses: Sequence[int],
        peer_ends: Sequence[int],
        workers: int = 1,
        device: torch.device | None = None,
        *,
        spin_ns: int = 0,
        first_epoch: int = 0,
        nodes: Sequence[int] = (),
    ) -> None:
        """`window_addresses` [ranks] as mapped here; `peer_ends` [ranks]: descriptors that become readable when a rank
        is gone, -1 for one that is not watched; `workers`: threads that move large payloads; `device`: where windows
        and tensors lie, None for the host; `spin_ns`: for which a wait keeps its core before others may have it;
        `first_epoch`: exchanges that the windows have behind them; `nodes`
        [ranks]: where each runs, empty where that does not matter.
        """
        p = layout.parameters
        self._nodes = nodes
        self._window_layout = layout
        self._matrix = torch.zeros(p.ranks, layout.counted_experts, dtype=torch.int32, device=device)
        self._totals = torch.zeros(p.ranks, dtype=torch.int64, device=device) if layout.granting else None
        first = 0 if layout.granting else rank * p.local_experts
        self._own_experts = slice(first, first + p.local_experts)
        self._on_fault: FaultHook | None = None
        self._ring: Ring | None = None
        self._native = library("cpu" if device is None else device.type).open_session(
            native_layout(layout), rank, window_addresses, peer_ends, timeout_ns=int(p.timeout_s * 1e9),
            workers=workers, spin_ns=spin_ns, epoch=first_epoch, takes_host_tensors=self.takes_host_tensors,
        )  # fmt: skip
        _sessions.add(self)

    @property
    def defers(self) -> bool:
        """Whether a call can be made that nobody waits for."""
        return False

    @property
    def inherited(self) -> bool:
        """Whether this process was forked from the one that opened the session, whose windows it must not touch."""
        return self._native.inherited

    def disown(self) -> None:
        """In a forked process: from now on every call raises `SessionPoisoned`, and leaving tells nobody."""
        self._native.disown()

    @property
    def epoch(self) -> int:
        """The epoch of the last call, which is not the last one begun after a combine of an earlier dispatch."""
        return self._native.epoch

    @property
    def step(self) -> Step:
        """The last step begun."""
        return Step(self._native.step)

    @property
    def waited_s(self) -> list[float]:
        """Seconds for which each rank has held this one up so far."""
        return [nanoseconds / 1e9 for nanoseconds in self._native.waited_ns]

    @property
    def received(self) -> torch.Tensor:
        """int32 [ranks, experts of this rank]: rows from each rank to each of these experts in the last dispatch;
        overwritten by the next."""
        return self._matrix[:, self._own_experts]

    def read_received(self) -> list[list[int]]:
        """`received` on the host, by a copy of everything: after a fault no kernel of a device is to sort it out."""
        return [row[self._own_experts] for row in self._matrix.tolist()]

    @property
    def counted(self) -> torch.Tensor:
        """What `observation.rows_by_rank` takes of the last dispatch; overwritten by the next."""
        return self._matrix if self._totals is None else self._totals

    def watch_steps(self, hook: StepHook | None) -> None:
        """Calls `hook` as each step begins, on the calling thread; None ends it.

        What the hook raises ends the call that began the step, and poisons the session.
        """
        self._native.on_step = None if hook is None else partial(self._call_hook, hook)

    def trace(self, make: Callable[[], Ring] | None) -> None:
        """Writes down each step from now on in the ring that `make` makes; None ends it. Not during a call."""
        ring = None if make is None else make()
        self._native.trace(0 if ring is None else ring.address)
        self._ring = ring

    def trace_layer(self, call: Call, layer: int) -> None:
        """Writes down which layer the dispatch of `call` is of, if steps are written down; on any thread."""
        self._native.trace_layer(call.epoch, layer)

    def watch_faults(self, hook: FaultHook) -> None:
        """Calls `hook` with each fault that poisons the session, before it is raised."""
        self._on_fault = hook

    def _call_hook(self, hook: StepHook, step: int) -> None:
        try:
            hook(Step(step))
        except BaseException as error:
            self._report(self._own_fault(self.step, self.epoch), error)
            raise

    def new_call(self, tokens: int) -> Call:
        """A call for at most `tokens` tokens."""
        return self._call_over(self._tensors_of_call(tokens))

    def replayed_call(self, tokens: int) -> Call:
        """A call of exactly `tokens` tokens that ends, in the order of the stream, before another one begins."""
        return self.new_call(tokens)

    def _tensors_of_call(self, tokens: int) -> TensorsOfCall:
        p, device = self._window_layout.parameters, self._matrix.device
        with torch.inference_mode(False):  # they are written to in any mode of autograd
            return TensorsOfCall(
                positions=torch.empty(tokens, p.topk, dtype=torch.int64, device=device),
                weights=torch.empty(tokens, p.topk, dtype=torch.float32, device=device),
                counts=torch.empty(p.local_experts, dtype=torch.int64, device=device),
            )

    def _call_over(self, tensors: TensorsOfCall) -> Call:
        return self._native.new_call(*tensors, self._matrix, self._totals)

    def dispatch(self, call: Call, most_rows: int = 0, *, wait: bool = True) -> None:  # noqa: ARG002 - for devices
        """Steps announce to arrivals.

        most_rows: if nobody waits, how many rows a rank gets at most, 0: a window's.
        wait: False only if the session defers; then, as in a capture, `call` does not know what came.
        """
        if result := call.dispatch():
            self.fail(result)

    def dispatch_send(self, call: Call) -> None:
        """Steps announce to place; afterwards what the call points at may change."""
        if result := call.dispatch_send():
            self.fail(result)

    def dispatch_receive(self, call: Call) -> None:
        """Step arrivals of a dispatch that was sent."""
        if result := call.dispatch_receive():
            self.fail(result)

    def refuse(self, kind: Kind, problem: str) -> None:
        """Takes part in an exchange of `kind` only to tell every rank why this one's arguments are wrong; raises."""
        if result := self._native.refuse(kind, problem):
            self.fail(result)

    def combine(self, call: Call, out: torch.Tensor, *, wait: bool = True) -> None:  # noqa: ARG002 - for devices
        """Steps done and reduce; out [tokens, hidden] with dense rows; `wait` as for `dispatch`."""
        if result := call.combine(out):
            self.fail(result)

    def combine_send(self, call: Call) -> None:
        """Step done without its wait; afterwards the results in the window stay as they are."""
        if result := call.combine_send():
            self.fail(result)

    def combine_receive(self, call: Call, out: torch.Tensor) -> None:
        """The wait of step done, and step reduce, of a combine that was sent; `out` as for `combine`."""
        if result := call.combine_receive(out):
            self.fail(result)

    def note_replay(self) -> None:
        """A graph that holds calls is replayed: on the host, where calls are waited for, nothing."""

    def check_replays(self) -> None:
        """Raises what calls that nobody waited for found wrong: on the host nothing."""

    def fetch_verdicts(self) -> int:
        """The same in two parts that wait for no call: on the host nothing. Returns what the other takes."""
        return 0

    def raise_fetched(self, place: int) -> None:
        """The second part of `fetch_verdicts`."""

    def rejoin(self, call: Call) -> None:
        """The rendezvous before another combine: afterwards no rank reads this one's expert outputs any more."""
        if result := call.rejoin():
            self.fail(result)

    def plan(self, block: bytes, tokens: int, error: InputError, detail: int) -> list[bytes]:
        """Exchanges one serialised block per rank through the mailboxes."""
        size = self._window_layout.mailbox_bytes
        if len(block) > size:
            raise InvalidInput(f"a control block of {len(block)} bytes does not fit a mailbox of {size}")
        result, blocks = self._native.plan(block, tokens, error, detail)
        if result:
            self.fail(result)
        return blocks

    def count_chunks(self, ids: torch.Tensor, chunk_tokens: int) -> ChunkCounts:
        """Counts what each chunk of `chunk_tokens` tokens sends to each rank; ids [tokens, topk] contiguous."""
        if self.inherited:
            refuse_forked()
        rows, error, detail = self._native.count_chunks(ids, chunk_tokens)
        return ChunkCounts(rows, InputError(error), detail)

    def leave(self, result: Result, step: Step, epoch: int) -> None:
        """Tells every rank that this one, at `step` of `epoch`, has failed or closes; nothing is waited for.

        May be called while another thread is inside a call of this session, which then ends.
        """
        self._native.leave(result, step, epoch)

    def give_up(self, error: BaseException, step: Step, epoch: int) -> None:
        """Tells every rank that `error` keeps this one from going on; otherwise as `leave`."""
        self.leave(Result.PEER_FAILED, step, epoch)
        if not self.inherited:
            self._report(self._own_fault(step, epoch), error)

    def leave_interrupted(self) -> None:
        """Tells every rank that this one does not go on from where it is."""
        self.leave(Result.PEER_FAILED, self.step, self.epoch)

    def fail(self, result: int) -> NoReturn:
        """Raises what a call that did not return `Result.OK` found."""
        if self.inherited:
            refuse_forked()
        fault = self._fault()
        refusal = fault_error(fault, self._window_layout, self._nodes)
        if Result.PEER_LOST <= result != Result.POISONED:
            self._report(fault, refusal)
        raise refusal

    def _report(self, fault: Fault, error: BaseException) -> None:
        if self._on_fault is not None:
            self._on_fault(fault, error)

    def _fault(self) -> Fault:
        native, found = self._native, self._native.fault
        return Fault(
            result=Result(found.result),
            rank=native.rank,
            culprit=found.culprit,
            step=Step(found.step),
            epoch=found.epoch,
            cause=found.cause,
            detail=found.detail,
            region=Region(found.region),
            missing=tuple(native.missing),
            refusal=native.refusal.decode(errors="replace"),
        )

    def _own_fault(self, step: Step, epoch: int) -> Fault:
        rank = self._native.rank
        return Fault(Result.PEER_FAILED, rank, rank, step, epoch, 0, 0, Region.NONE, (), "")


_sessions: WeakSet[NativeSession] = WeakSet()


def _disown_sessions() -> None:
    for session in _sessions:
        session.disown()


os.register_at_fork(after_in_child=_disown_sessions)
