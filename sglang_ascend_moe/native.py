"""The ctypes binding of `kernels/include/exchange.h`; the only module that knows how kernels are called."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import msgspec
import torch

from sglang_ascend_moe.codes import InputError, Kind, Part, Result, Step
from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch, Unsupported
from sglang_ascend_moe.faults import Fault, fault_error
from sglang_ascend_moe.windows.layout import Regions, WindowLayout

ABI_VERSION = 1
_REFUSAL_BYTES = 256
_LIBRARY = "sglang_ascend_moe._host_kernels"
_ELEMENTS = {"bfloat16": 0, "float16": 1, "float32": 2}


_u32, _u64, _i64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int64, ctypes.c_void_p
_STEP_HOOK = ctypes.CFUNCTYPE(ctypes.c_int32, _u32)
StepHook = Callable[[Step], None]
FaultHook = Callable[[Fault, BaseException], None]


class _Layout(ctypes.Structure):
    _fields_ = [
        *((name, _u32) for name in (
            "abi_version", "ranks", "experts", "hidden", "topk", "max_tokens", "slots", "element", "distinct_topk",
            "count_units", "verify", "quantised",
        )),
        *((name, _u64) for name in (
            "capacity", "row_bytes", "out_row_bytes", "mailbox_bytes", *Regions.__struct_fields__, "total_bytes",
        )),
    ]  # fmt: skip


class _Fault(ctypes.Structure):
    _fields_ = [("result", _u32), ("culprit", _u32), ("step", _u32), ("cause", _u32), ("epoch", _u64), ("detail", _i64)]


class _Interpreter(ctypes.Structure):
    _fields_ = [("release", _pointer), ("acquire", _pointer), ("check_signals", _pointer)]


class _Session(ctypes.Structure):
    _fields_ = [
        ("layout", ctypes.POINTER(_Layout)), ("windows", _pointer), ("peer_pidfds", _pointer), ("missing", _pointer),
        ("ended", _pointer), ("waited_ns", _pointer), ("on_step", _STEP_HOOK), ("interpreter", _Interpreter),
        ("timeout_ns", _u64), ("workers", _u32), ("reserved", _u32), ("rank", _u32), ("step", _u32), ("epoch", _u64),
        ("fault", _Fault), ("refusal", ctypes.c_char * _REFUSAL_BYTES),
    ]  # fmt: skip


class _Dispatch(ctypes.Structure):
    _fields_ = [
        ("x", _pointer), ("x_stride", _u64), ("ids", _pointer), ("ids_bytes", _u32), ("tokens", _u32), ("kind", _u32),
        ("part", _u32), ("continues", _u32), ("slot", _u32), ("positions", _pointer), ("counts", _pointer),
        ("matrix", _pointer), ("epoch", _u64), ("first_row", _u64), ("total", _u64),
    ]  # fmt: skip


class _Combine(ctypes.Structure):
    _fields_ = [
        ("positions", _pointer), ("weights", _pointer), ("out", _pointer), ("out_stride", _u64), ("epoch", _u64),
        ("first_row", _u64), ("total", _u64), ("tokens", _u32), ("slot", _u32), ("part", _u32), ("reserved", _u32),
    ]  # fmt: skip


class _Plan(ctypes.Structure):
    _fields_ = [
        ("block", ctypes.c_char_p), ("block_bytes", _u32), ("tokens", _u32), ("input_error", _u32), ("reserved", _u32),
        ("detail", _i64), ("lengths", _pointer), ("blocks", _pointer),
    ]  # fmt: skip


class Dispatched(NamedTuple):
    """What a dispatch leaves behind.

    positions: int64 [tokens, topk], destination rank << 32 | row, or -1; counts: int64 [local experts];
    total: rows in this rank's window, which lie in its slot from first_row on.
    """

    epoch: int
    slot: int
    part: Part
    first_row: int
    total: int
    positions: torch.Tensor
    counts: torch.Tensor


class ChunkCounts(NamedTuple):
    """Rows that each chunk of tokens sends to each rank: `rows` [chunks, ranks]; or why they cannot be counted."""

    rows: list[list[int]]
    error: InputError
    detail: int


_chosen_library: str | None = None


def use_library(path: str | None) -> None:
    """Makes sessions that this process opens from now on use the kernels in another library with the same C ABI, such
    as one under test; None goes back to the package's own."""
    global _chosen_library
    _chosen_library = path


def _library() -> ctypes.CDLL:
    return _load(_chosen_library or _own_library())


def _own_library() -> str:
    found = importlib.util.find_spec(_LIBRARY)
    if found is None or found.origin is None:
        raise Unsupported(
            "the native kernels are not built; install the package with `pip install -e .` (or `make venv`)"
        )
    return found.origin


@cache
def _load(path: str) -> ctypes.CDLL:
    # PyDLL: the kernels release the interpreter themselves, and raise what a signal handler raised during a wait.
    library = ctypes.PyDLL(path)
    library.exchange_abi_version.restype = _u32
    version = library.exchange_abi_version()
    if version != ABI_VERSION:
        raise ProtocolMismatch(f"kernels have ABI {version}, the package expects {ABI_VERSION}; rebuild the kernels")
    for name in ("exchange_dispatch", "exchange_combine", "exchange_rejoin", "exchange_plan"):
        getattr(library, name).argtypes = [_pointer, _pointer]
    library.exchange_initialise.argtypes = [_pointer, _pointer, _u64]
    library.exchange_initialise.restype = None
    library.exchange_select_kernels.argtypes = [ctypes.c_char_p]
    library.exchange_selected_kernels.restype = ctypes.c_char_p
    library.exchange_cut_segments.argtypes = [_pointer, _u32, _u32, _u32, _pointer]
    library.exchange_cut_segments.restype = None
    library.exchange_refuse.argtypes = [_pointer, _u32, ctypes.c_char_p, _u32]
    library.exchange_leave.argtypes = [_pointer, _u32, _u32, _u64]
    library.exchange_leave.restype = None
    library.exchange_count_chunks.argtypes = [_pointer, _pointer, _u32, _u32, _u32, _pointer, _pointer]
    library.exchange_count_chunks.restype = _u32
    return library


def _native_layout(layout: WindowLayout) -> _Layout:
    p = layout.parameters
    return _Layout(
        abi_version=ABI_VERSION, ranks=p.ranks, experts=p.num_experts, hidden=p.hidden, topk=p.topk,
        max_tokens=p.max_tokens, slots=p.slots, element=_ELEMENTS[p.dtype], distinct_topk=p.distinct_topk,
        count_units=layout.count_units, verify=p.verify, quantised=p.quant is not None, capacity=layout.capacity,
        row_bytes=p.row_bytes, out_row_bytes=p.out_row_bytes, mailbox_bytes=layout.mailbox_bytes,
        total_bytes=layout.total_bytes, **msgspec.structs.asdict(layout.offsets),
    )  # fmt: skip


def _address(python_function: str) -> int | None:
    return ctypes.cast(getattr(ctypes.pythonapi, python_function), _pointer).value


def layout_bytes(layout: WindowLayout) -> bytes:
    """The `ExchangeLayout` that kernels receive, as bytes; for harnesses that are not written in Python."""
    return bytes(_native_layout(layout))


def cut_segments(positions: torch.Tensor, count: int) -> list[int]:
    """Bounds of `count` ranges of tokens that move equally many rows; positions int64 [tokens, topk], -1 = none."""
    bounds = (_u32 * (count + 1))()
    tokens, topk = positions.shape
    _library().exchange_cut_segments(positions.contiguous().data_ptr(), tokens, topk, count, bounds)
    return list(bounds)


def select_kernels(name: str | None) -> str:
    """Makes this process use the row kernels of an instruction set; None takes the widest. Returns which are in use.

    All give the same bits. Raises `Unsupported` if this processor has not that instruction set.
    """
    library = _library()
    if library.exchange_select_kernels(None if name is None else name.encode()) != 0:
        raise Unsupported(f"this processor cannot run the row kernels {name!r}; None selects those that it can")
    return str(library.exchange_selected_kernels().decode())


def initialise_window(layout: WindowLayout, address: int) -> None:
    """Prepares this rank's own, zeroed window before any peer maps it."""
    _library().exchange_initialise(ctypes.byref(_native_layout(layout)), address, layout.parameters.first_epoch)


class NativeSession:
    """One rank's open exchange, as the kernels see it. Not thread-safe."""

    def __init__(
        self,
        layout: WindowLayout,
        rank: int,
        window_addresses: Sequence[int],
        peer_pidfds: Sequence[int],
        workers: int = 1,
    ) -> None:
        """`window_addresses` [ranks] as mapped here; `peer_pidfds` [ranks], -1 for a rank that is not watched;
        `workers`: threads that move large payloads.
        """
        ranks = layout.parameters.ranks
        self._library = _library()
        self._window_layout = layout
        self._layout = _native_layout(layout)
        self._windows = (_pointer * ranks)(*window_addresses)
        self._pidfds = (ctypes.c_int32 * ranks)(*peer_pidfds)
        self._missing = (ctypes.c_uint8 * ranks)()
        self._ended = (ctypes.c_uint8 * ranks)()
        self._waited_ns = (_u64 * ranks)()
        self._matrix = torch.zeros(ranks, layout.parameters.num_experts, dtype=torch.int32)
        self._hook = _STEP_HOOK()
        self._hook_error: BaseException | None = None
        self._on_fault: FaultHook | None = None
        self._session = _Session(
            layout=ctypes.pointer(self._layout),
            windows=ctypes.cast(self._windows, _pointer),
            peer_pidfds=ctypes.cast(self._pidfds, _pointer),
            missing=ctypes.cast(self._missing, _pointer),
            ended=ctypes.cast(self._ended, _pointer),
            waited_ns=ctypes.cast(self._waited_ns, _pointer),
            interpreter=_Interpreter(
                *map(_address, ("PyEval_SaveThread", "PyEval_RestoreThread", "PyErr_CheckSignals"))
            ),
            timeout_ns=int(layout.parameters.timeout_s * 1e9),
            workers=workers,
            rank=rank,
            epoch=layout.parameters.first_epoch,
        )

    @property
    def epoch(self) -> int:
        """The last epoch begun."""
        return int(self._session.epoch)

    @property
    def step(self) -> Step:
        """The last step begun."""
        return Step(self._session.step)

    @property
    def waited_s(self) -> list[float]:
        """Seconds for which each rank has held this one up so far."""
        return [nanoseconds / 1e9 for nanoseconds in self._waited_ns]

    @property
    def matrix(self) -> torch.Tensor:
        """int32 [ranks, experts]: rows from each rank to each expert in the last dispatch; overwritten by the next."""
        return self._matrix

    def watch_steps(self, hook: StepHook | None) -> None:
        """Calls `hook` as each step begins, on the calling thread; None ends it.

        What the hook raises ends the call that began the step, and poisons the session.
        """
        self._hook = _STEP_HOOK() if hook is None else _STEP_HOOK(lambda step: self._call_hook(hook, Step(step)))
        self._session.on_step = self._hook

    def watch_faults(self, hook: FaultHook) -> None:
        """Calls `hook` with each fault that poisons the session, before it is raised."""
        self._on_fault = hook

    def _call_hook(self, hook: StepHook, step: Step) -> int:
        try:
            hook(step)
        except BaseException as error:  # noqa: BLE001 - no exception can pass through the kernel; _check raises it
            self._hook_error = error
            return 1
        return 0

    def dispatch(
        self, x: torch.Tensor, ids: torch.Tensor, kind: Kind, part: Part = Part.WHOLE, *, continues: bool = False
    ) -> Dispatched:
        """Steps announce to arrivals; x [tokens, hidden] with dense rows, ids [tokens, topk] contiguous. One that
        `continues` stays in the slot of the dispatch before, as a further round of the same call."""
        return self.prepare_dispatch(x, ids, kind, part, continues=continues)()

    def prepare_dispatch(
        self, x: torch.Tensor, ids: torch.Tensor, kind: Kind, part: Part = Part.WHOLE, *, continues: bool = False
    ) -> Callable[[], Dispatched]:
        """A `dispatch` of what the tensors hold when it is called; every call writes the same positions and counts."""
        positions = torch.empty(ids.shape, dtype=torch.int64)
        counts = torch.empty(self._window_layout.parameters.local_experts, dtype=torch.int64)
        call = _Dispatch(
            x=x.data_ptr(), x_stride=x.stride(0) * x.element_size(), ids=ids.data_ptr(),
            ids_bytes=ids.element_size(), tokens=x.shape[0], kind=kind, part=part, continues=continues,
            positions=positions.data_ptr(), counts=counts.data_ptr(), matrix=self._matrix.data_ptr(),
        )  # fmt: skip
        session, reference = ctypes.byref(self._session), ctypes.byref(call)

        def dispatch() -> Dispatched:
            self._check(self._library.exchange_dispatch(session, reference))
            return Dispatched(call.epoch, call.slot, part, call.first_row, call.total, positions, counts)

        return dispatch

    def refuse(self, kind: Kind, problem: str) -> None:
        """Takes part in an exchange of `kind` only to tell every rank why this one's arguments are wrong; raises."""
        text = problem.encode()[:_REFUSAL_BYTES]
        self._check(self._library.exchange_refuse(ctypes.byref(self._session), kind, text, len(text)))

    def combine(self, dispatched: Dispatched, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Steps done and reduce; weights fp32 [tokens, topk] contiguous, out [tokens, hidden] with dense rows."""
        call = self._combine_call(dispatched)
        call.weights, call.out, call.out_stride = weights.data_ptr(), out.data_ptr(), out.stride(0) * out.element_size()
        self._check(self._library.exchange_combine(ctypes.byref(self._session), ctypes.byref(call)))

    def rejoin(self, dispatched: Dispatched) -> None:
        """The rendezvous before another combine: afterwards no rank reads this one's expert outputs any more."""
        call = self._combine_call(dispatched)
        self._check(self._library.exchange_rejoin(ctypes.byref(self._session), ctypes.byref(call)))

    def plan(self, block: bytes, tokens: int, error: InputError, detail: int) -> list[bytes]:
        """Exchanges one serialised block per rank through the mailboxes."""
        ranks, size = self._window_layout.parameters.ranks, self._window_layout.mailbox_bytes
        if len(block) > size:
            raise InvalidInput(f"a control block of {len(block)} bytes does not fit a mailbox of {size}")
        lengths = (_u32 * ranks)()
        blocks = ctypes.create_string_buffer(ranks * size)
        call = _Plan(
            block=block, block_bytes=len(block), tokens=tokens, input_error=error, detail=detail,
            lengths=ctypes.cast(lengths, _pointer), blocks=ctypes.cast(blocks, _pointer),
        )  # fmt: skip
        self._check(self._library.exchange_plan(ctypes.byref(self._session), ctypes.byref(call)))
        return [blocks.raw[rank * size : rank * size + lengths[rank]] for rank in range(ranks)]

    def count_chunks(self, ids: torch.Tensor, chunk_tokens: int) -> ChunkCounts:
        """Counts what each chunk of `chunk_tokens` tokens sends to each rank; ids [tokens, topk] contiguous."""
        ranks, tokens = self._window_layout.parameters.ranks, ids.shape[0]
        rows = torch.zeros(-(-tokens // chunk_tokens), ranks, dtype=torch.int32)
        detail = _i64()
        error = self._library.exchange_count_chunks(
            ctypes.byref(self._layout), ids.data_ptr(), ids.element_size(), tokens, chunk_tokens, rows.data_ptr(),
            ctypes.byref(detail),
        )  # fmt: skip
        return ChunkCounts(rows.tolist(), InputError(error), detail.value)

    def leave(self, result: Result, step: Step, epoch: int) -> None:
        """Tells every rank that this one, at `step` of `epoch`, has failed or closes; nothing is waited for.

        May be called while another thread is inside a call of this session, which then ends.
        """
        self._library.exchange_leave(ctypes.byref(self._session), result, step, epoch)

    def give_up(self, error: BaseException, step: Step, epoch: int) -> None:
        """Tells every rank that `error` keeps this one from going on; otherwise as `leave`."""
        self.leave(Result.PEER_FAILED, step, epoch)
        self._report(self._own_fault(step, epoch), error)

    def _combine_call(self, dispatched: Dispatched) -> _Combine:
        return _Combine(
            positions=dispatched.positions.data_ptr(), epoch=dispatched.epoch, first_row=dispatched.first_row,
            total=dispatched.total, slot=dispatched.slot, part=dispatched.part,
            tokens=dispatched.positions.shape[0],
        )  # fmt: skip

    def _check(self, result: int) -> None:
        if result == Result.OK:
            return
        if self._hook_error is not None:
            error, self._hook_error = self._hook_error, None
            self._report(self._own_fault(self.step, self.epoch), error)
            raise error
        fault = self._fault()
        refusal = fault_error(fault, self._window_layout)
        if Result.PEER_LOST <= result != Result.POISONED:
            self._report(fault, refusal)
        raise refusal

    def _report(self, fault: Fault, error: BaseException) -> None:
        if self._on_fault is not None:
            self._on_fault(fault, error)

    def _fault(self) -> Fault:
        fault = self._session.fault
        return Fault(
            result=Result(fault.result),
            rank=self._session.rank,
            culprit=fault.culprit,
            step=Step(fault.step),
            epoch=fault.epoch,
            cause=fault.cause,
            detail=fault.detail,
            missing=tuple(rank for rank, flag in enumerate(self._missing) if flag),
            refusal=bytes(self._session.refusal).decode(errors="replace"),
        )

    def _own_fault(self, step: Step, epoch: int) -> Fault:
        rank = self._session.rank
        return Fault(Result.PEER_FAILED, rank, rank, step, epoch, 0, 0, (), "")
