"""Calls the kernels through `kernels/include/exchange.h`: sessions, and what is done without one."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, ClassVar, NamedTuple, NoReturn
from weakref import WeakSet

import torch

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch, Unsupported
from sglang_ascend_moe.native import abi
from sglang_ascend_moe.native.abi import ABI_VERSION, REFUSAL_BYTES, STEP_HOOK, i64, native_layout, pointer, u32, u64
from sglang_ascend_moe.native.calls import DispatchCall
from sglang_ascend_moe.native.codes import InputError, Kind, Result, Step
from sglang_ascend_moe.native.faults import Fault, fault_error, refuse_forked
from sglang_ascend_moe.windows.layout import ELEMENT_BYTES, WindowLayout

_LIBRARIES = {"cpu": "sglang_ascend_moe._host_kernels", "npu": "sglang_ascend_moe._ascend_kernels"}
StepHook = Callable[[Step], None]
FaultHook = Callable[[Fault, BaseException], None]


Dispatched = tuple[int, int, int, int]
"""epoch, slot, tokens of this rank, rows that arrived."""


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


def _library(device: str = "cpu") -> ctypes.CDLL:
    return _load(_chosen_library or own_library(device))


def own_library(device: str) -> str:
    """The path of the package's library for tensors on "cpu" or "npu". Raises `Unsupported` if it is not built."""
    found = importlib.util.find_spec(_LIBRARIES[device])
    if found is not None and found.origin is not None:
        return found.origin
    if device == "npu":
        raise Unsupported("the Ascend kernels are not built; run `ascend-moe build-kernels` on this machine")
    raise Unsupported("the native kernels are not built; install the package with `pip install -e .` (or `make venv`)")


@cache
def _load(path: str) -> ctypes.CDLL:
    # PyDLL: the kernels release the interpreter themselves, and raise what a signal handler raised during a wait.
    library = ctypes.PyDLL(path)
    library.exchange_abi_version.restype = u32
    version = library.exchange_abi_version()
    if version != ABI_VERSION:
        raise ProtocolMismatch(f"kernels have ABI {version}, the package expects {ABI_VERSION}; rebuild the kernels")
    parts = [f"exchange_{call}_{part}" for call in ("dispatch", "combine") for part in ("send", "receive")]
    for name in ("exchange_dispatch", "exchange_combine", "exchange_rejoin", "exchange_plan", *parts):
        getattr(library, name).argtypes = [pointer, pointer]
    library.exchange_initialise.argtypes = [pointer, pointer, u64]
    library.exchange_initialise.restype = None
    library.exchange_select_kernels.argtypes = [ctypes.c_char_p]
    library.exchange_selected_kernels.restype = ctypes.c_char_p
    library.exchange_refuse.argtypes = [pointer, u32, ctypes.c_char_p, u32]
    library.exchange_leave.argtypes = [pointer, u32, u32, u64]
    library.exchange_leave.restype = None
    library.exchange_count_chunks.argtypes = [pointer, pointer, u32, u32, u32, pointer, pointer]
    library.exchange_count_chunks.restype = u32
    return library


def _address(python_function: str) -> int | None:
    return ctypes.cast(getattr(ctypes.pythonapi, python_function), pointer).value


def select_kernels(name: str | None) -> str:
    """Makes this process use the row kernels of an instruction set; None takes the widest. Returns which are in use.

    All give the same bits. Raises `Unsupported` if this processor has not that instruction set.
    """
    library = _library()
    if library.exchange_select_kernels(None if name is None else name.encode()) != 0:
        raise Unsupported(f"this processor cannot run the row kernels {name!r}; None selects those that it can")
    return str(library.exchange_selected_kernels().decode())


def initialise_window(layout: WindowLayout, address: int, device: str = "cpu", *, first_epoch: int = 0) -> None:
    """Prepares this rank's own window before any peer uses it; zeroed already, where it is memory of the host.

    `first_epoch` exchanges are behind it.

    Raises `Unsupported` if the kernels cannot serve windows of this layout.
    """
    library, described = _library(device), native_layout(layout)
    # Only libraries whose kernels have limits of their own have this function.
    if (refuse := getattr(library, "exchange_refuse_layout", None)) is not None:
        refuse.restype = ctypes.c_char_p
        if (refusal := refuse(ctypes.byref(described))) is not None:
            raise Unsupported(refusal.decode())
    library.exchange_initialise(ctypes.byref(described), address, first_epoch)


class NativeSession:
    """One rank's open exchange, as the kernels see it. Not thread-safe."""

    takes_host_tensors: ClassVar[bool] = True

    def __init__(
        self,
        layout: WindowLayout,
        rank: int,
        window_addresses: Sequence[int],
        peer_pidfds: Sequence[int],
        workers: int = 1,
        device: torch.device | None = None,
        *,
        first_epoch: int = 0,
    ) -> None:
        """`window_addresses` [ranks] as mapped here; `peer_pidfds` [ranks], -1 for a rank that is not watched;
        `workers`: threads that move large payloads; `device`: where windows and tensors lie, None for the host;
        `first_epoch`: exchanges that the windows have behind them.
        """
        ranks = layout.parameters.ranks
        self._library: Any = _library("cpu" if device is None else device.type)
        self._window_layout = layout
        self._layout = native_layout(layout)
        self._windows = (pointer * ranks)(*window_addresses)
        self._pidfds = (ctypes.c_int32 * ranks)(*peer_pidfds)
        self._missing = (ctypes.c_uint8 * ranks)()
        self._ended = (ctypes.c_uint8 * ranks)()
        self._waited_ns = (u64 * ranks)()
        self._matrix = torch.zeros(ranks, layout.parameters.num_experts, dtype=torch.int32, device=device)
        self._hook = STEP_HOOK()
        self._hook_error: BaseException | None = None
        self._on_fault: FaultHook | None = None
        self._session = abi.Session(
            layout=ctypes.pointer(self._layout),
            windows=ctypes.cast(self._windows, pointer),
            peer_pidfds=ctypes.cast(self._pidfds, pointer),
            missing=ctypes.cast(self._missing, pointer),
            ended=ctypes.cast(self._ended, pointer),
            waited_ns=ctypes.cast(self._waited_ns, pointer),
            interpreter=abi.Interpreter(
                *map(_address, ("PyEval_SaveThread", "PyEval_RestoreThread", "PyErr_CheckSignals"))
            ),
            timeout_ns=int(layout.parameters.timeout_s * 1e9),
            workers=workers,
            rank=rank,
            epoch=first_epoch,
        )
        self._reference = ctypes.byref(self._session)
        self._functions = {
            f"run_{name}": ctypes.cast(getattr(self._library, f"exchange_{name}"), pointer)
            for name in ("dispatch", "combine")
        }
        self._calls: Any = importlib.import_module(_LIBRARIES["cpu"])
        self._dispatch, self._combine = self._calls.dispatch, self._calls.combine
        self._dispatch_fitting = self._calls.dispatch_fitting
        self._element_bytes = ELEMENT_BYTES[layout.parameters.dtype]
        self.inherited = False
        """Whether this process was forked from the one that opened the session, whose windows it must not touch."""
        _sessions.add(self)

    def disown(self) -> None:
        """In a forked process: from now on every call raises `SessionPoisoned`, and leaving tells nobody."""
        self.inherited = True
        self._library = _NoKernels()
        self._dispatch = self._combine = self._dispatch_fitting = refuse_forked

    @property
    def epoch(self) -> int:
        """The epoch of the last call, which is not the last one begun after a combine of an earlier dispatch."""
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
        self._hook = STEP_HOOK() if hook is None else STEP_HOOK(lambda step: self._call_hook(hook, Step(step)))
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

    def new_call(self, tokens: int) -> DispatchCall:
        """A call for at most `tokens` tokens."""
        native = abi.Call(session=ctypes.addressof(self._session), **self._functions)
        calls = self._calls if self.takes_host_tensors else None
        with torch.inference_mode(False):  # its tensors are written to in any mode of autograd
            return DispatchCall(native, calls, self._window_layout, tokens, self._matrix)

    def dispatch(self, call: DispatchCall) -> None:
        """Steps announce to arrivals."""
        result = self._dispatch(call.address)
        if result:
            self._raise(result)

    def dispatch_fitting(
        self, call: DispatchCall, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, kind: Kind
    ) -> Dispatched | None:
        """`dispatch` of a caller's tensors into a whole slot, if the kernels take them as they are; else nothing is
        done. Keeps the weights."""
        done: Dispatched | int | None = self._dispatch_fitting(call.address, x, ids, weights, kind)
        if isinstance(done, int):
            self._raise(done)
        return done

    def dispatch_send(self, call: DispatchCall) -> None:
        """Steps announce to place; afterwards what the call points at may change."""
        self._check(self._library.exchange_dispatch_send(self._reference, call.reference))
        self._keep_place(call)

    def dispatch_receive(self, call: DispatchCall) -> None:
        """Step arrivals of a dispatch that was sent."""
        self._check(self._library.exchange_dispatch_receive(self._reference, call.reference))

    def _keep_place(self, call: DispatchCall) -> None:
        done, combine = call.dispatch, call.combine
        combine.epoch, combine.slot = done.epoch, done.slot
        combine.first_row, combine.total = done.first_row, done.total

    def refuse(self, kind: Kind, problem: str) -> None:
        """Takes part in an exchange of `kind` only to tell every rank why this one's arguments are wrong; raises."""
        text = problem.encode()[:REFUSAL_BYTES]
        self._check(self._library.exchange_refuse(self._reference, kind, text, len(text)))

    def combine(self, call: DispatchCall, out: torch.Tensor) -> None:
        """Steps done and reduce; out [tokens, hidden] with dense rows."""
        if not call.fits_out(out):
            self._point_at_result(call, out)
        result = self._combine(call.address)
        if result:
            self._raise(result)

    def combine_send(self, call: DispatchCall) -> None:
        """Step done without its wait; afterwards the results in the window stay as they are."""
        self._check(self._library.exchange_combine_send(self._reference, call.combine_reference))

    def combine_receive(self, call: DispatchCall, out: torch.Tensor) -> None:
        """The wait of step done, and step reduce, of a combine that was sent; `out` as for `combine`."""
        self._point_at_result(call, out)
        self._check(self._library.exchange_combine_receive(self._reference, call.combine_reference))

    def _point_at_result(self, call: DispatchCall, out: torch.Tensor) -> None:
        arguments = call.combine
        arguments.out = out.data_ptr()
        arguments.out_stride = out.stride()[0] * self._element_bytes

    def check_replays(self) -> None:
        """Raises what replays of captured launches found wrong: on the host, where calls are waited for, nothing."""

    def rejoin(self, call: DispatchCall) -> None:
        """The rendezvous before another combine: afterwards no rank reads this one's expert outputs any more."""
        self._check(self._library.exchange_rejoin(self._reference, call.combine_reference))

    def plan(self, block: bytes, tokens: int, error: InputError, detail: int) -> list[bytes]:
        """Exchanges one serialised block per rank through the mailboxes."""
        ranks, size = self._window_layout.parameters.ranks, self._window_layout.mailbox_bytes
        if len(block) > size:
            raise InvalidInput(f"a control block of {len(block)} bytes does not fit a mailbox of {size}")
        lengths = (u32 * ranks)()
        blocks = ctypes.create_string_buffer(ranks * size)
        call = abi.Plan(
            block=block, block_bytes=len(block), tokens=tokens, input_error=error, detail=detail,
            lengths=ctypes.cast(lengths, pointer), blocks=ctypes.cast(blocks, pointer),
        )  # fmt: skip
        self._check(self._library.exchange_plan(self._reference, ctypes.byref(call)))
        return [blocks.raw[rank * size : rank * size + lengths[rank]] for rank in range(ranks)]

    def count_chunks(self, ids: torch.Tensor, chunk_tokens: int) -> ChunkCounts:
        """Counts what each chunk of `chunk_tokens` tokens sends to each rank; ids [tokens, topk] contiguous."""
        ranks, tokens = self._window_layout.parameters.ranks, ids.shape[0]
        rows = torch.zeros(-(-tokens // chunk_tokens), ranks, dtype=torch.int32)
        detail = i64()
        error = self._library.exchange_count_chunks(
            ctypes.byref(self._layout), ids.data_ptr(), ids.element_size(), tokens, chunk_tokens, rows.data_ptr(),
            ctypes.byref(detail),
        )  # fmt: skip
        return ChunkCounts(rows.tolist(), InputError(error), detail.value)

    def leave(self, result: Result, step: Step, epoch: int) -> None:
        """Tells every rank that this one, at `step` of `epoch`, has failed or closes; nothing is waited for.

        May be called while another thread is inside a call of this session, which then ends.
        """
        if self.inherited:
            return
        self._library.exchange_leave(self._reference, result, step, epoch)

    def give_up(self, error: BaseException, step: Step, epoch: int) -> None:
        """Tells every rank that `error` keeps this one from going on; otherwise as `leave`."""
        self.leave(Result.PEER_FAILED, step, epoch)
        if not self.inherited:
            self._report(self._own_fault(step, epoch), error)

    def leave_interrupted(self) -> None:
        """Tells every rank that this one does not go on from where it is."""
        self.leave(Result.PEER_FAILED, self.step, self.epoch)

    def _check(self, result: int) -> None:
        if result != Result.OK:
            self._raise(result)

    def _raise(self, result: int) -> NoReturn:
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


class _NoKernels:
    """The kernels of a process that has none to call."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        return refuse_forked


_sessions: WeakSet[NativeSession] = WeakSet()


def _disown_sessions() -> None:
    for session in _sessions:
        session.disown()


os.register_at_fork(after_in_child=_disown_sessions)
