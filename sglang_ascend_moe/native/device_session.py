"""Sessions whose windows and tensors lie on an Ascend device (`kernels/include/exchange_device.h`), never run on one.

A call waits for its verdict, as on the host, unless it says otherwise or is in the capture of a device graph: then it
is only put on the stream. What it found, or replays of it, is looked at by `check_replays`, or by `fetch_verdicts` and
then `raise_fetched`, before anything uses the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.native.codes import InputError, Kind, Result, Step
from sglang_ascend_moe.native.faults import refuse_forked
from sglang_ascend_moe.native.library import own_library
from sglang_ascend_moe.native.session import ChunkCounts, NativeSession, Ring
from sglang_ascend_moe.windows.layout import WindowLayout

if TYPE_CHECKING:
    from sglang_ascend_moe._host_kernels import Call

FETCHES = 8
"""As EXCHANGE_DEVICE_FETCHES: SGLang has two steps on their way, and prefill instances three."""
_DISPATCH, _COMBINE = 0, 1


class Streams(Protocol):
    """How a session gets at the stream that torch works on: `torch_npu` through our torch library, or a stand-in."""

    def use_stream(self, like: torch.Tensor, session: int) -> bool:
        """Hands the stream to the session, after everything torch has queued for it; whether it is being captured."""

    def launch(self, tensors: Sequence[torch.Tensor], kernel: int, session: int, call: int, most_rows: int) -> None:
        """Puts a dispatch (0) or combine (1) on the stream, in the order of what torch does with `tensors`."""

    def fetch_verdicts(self, like: torch.Tensor, session: int, place: int) -> None:
        """Puts the copy of what launches have found on the stream, in the order of what torch does."""

    def grouped_product(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        scale: torch.Tensor | None,
        row_scale: torch.Tensor | None,
        counts: torch.Tensor,
        out: torch.Tensor,
    ) -> None:
        """Puts `npu_grouped_matmul` of torch_npu with one weight [experts, from, to] on the stream, into `out`.

        rows [rows, from], counts int64 [experts], row_scale [rows], out [rows, to]: rows past the counts stay.
        """


@cache
def torch_streams() -> Streams:
    """Those of `torch_npu`. Raises `Unsupported` if what `ascend-moe build-kernels` makes cannot be loaded."""
    path = Path(own_library("npu")).with_name("_ascend_torch.so")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise Unsupported(
            f"{path.name} cannot be loaded ({error}); run `ascend-moe build-kernels` again with the torch and torch_npu"
            " that are installed"
        ) from error
    return torch.ops.sglang_ascend_moe


class DeviceSession(NativeSession):
    """One rank's open exchange on the current device. Not thread-safe."""

    takes_host_tensors = False
    packs_scales = True

    def __init__(
        self,
        layout: WindowLayout,
        rank: int,
        window_addresses: Sequence[int],
        peer_ends: Sequence[int],
        device: torch.device,
        streams: Streams | None = None,
        cores: int = 0,
        *,
        first_epoch: int = 0,
        nodes: Sequence[int] = (),
    ) -> None:
        """`window_addresses` [ranks] as the device sees them; `cores`: vector cores to run on, 0 for all.

        Raises `PeerLost` of this rank, with the words of CANN, if it refuses memory.
        """
        super().__init__(layout, rank, window_addresses, peer_ends, device=device, first_epoch=first_epoch, nodes=nodes)
        self._streams = torch_streams() if streams is None else streams
        self._place = 0
        self._shared = self._tensors_of_call(layout.parameters.max_tokens)
        self._shared.positions.fill_(-1)
        if result := self._native.open_device(cores):
            self.fail(result)
        # The tensors are written in the order of the current stream; the first call may be on another one.
        self.check_replays()

    @property
    def defers(self) -> bool:
        """With one slot, whose beginning needs not be told; not the first call, for the combine of a dispatch that was
        refused runs in the place of an earlier one."""
        return self._window_layout.parameters.slots == 1 and self.epoch > 0

    def replayed_call(self, tokens: int) -> Call:
        """As that of the base, in memory that all such calls share.

        If nobody waits, the combine of a dispatch that was refused runs all the same, on the positions of one that was
        not: there are rows, or there are none.
        """
        shared = self._shared
        return self._call_over(shared._replace(positions=shared.positions[:tokens], weights=shared.weights[:tokens]))

    def dispatch(self, call: Call, most_rows: int = 0, *, wait: bool = True) -> None:
        """Steps announce to arrivals; if nobody waits only put on the stream, and refused if it brings more rows."""
        if self._is_deferred(wait):
            self._put(_DISPATCH, call, call.dispatch_address, most_rows)
            call.forget_place()
        else:
            super().dispatch(call)

    def combine(self, call: Call, out: torch.Tensor, *, wait: bool = True) -> None:
        """Steps done and reduce; if nobody waits only put on the stream."""
        if self._is_deferred(wait):
            call.take_out(out)
            self._put(_COMBINE, call, call.combine_address)
        else:
            super().combine(call, out)

    def dispatch_send(self, call: Call) -> None:
        """The whole of `dispatch`: a launch is not divided."""
        self.dispatch(call)

    def dispatch_receive(self, call: Call) -> None:
        """Nothing is left to do."""

    def combine_send(self, call: Call) -> None:
        """Nothing is done yet."""

    def combine_receive(self, call: Call, out: torch.Tensor) -> None:
        """The whole of `combine`."""
        self.combine(call, out)

    def rejoin(self, call: Call) -> None:
        self._enter()
        super().rejoin(call)

    def refuse(self, kind: Kind, problem: str) -> None:
        self._enter()
        super().refuse(kind, problem)

    def plan(self, block: bytes, tokens: int, error: InputError, detail: int) -> list[bytes]:
        self._enter()
        return super().plan(block, tokens, error, detail)

    def count_chunks(self, ids: torch.Tensor, chunk_tokens: int) -> ChunkCounts:
        self._enter()
        return super().count_chunks(ids, chunk_tokens)

    def trace(self, make: Callable[[], Ring] | None) -> None:
        """As that of the base, after everything on the device is done; replays of what was captured before are written
        down as well. What launches have left comes into the ring as it is checked or fetched."""
        ring = None if make is None else make()
        self._enter()
        if result := self._native.trace_device(0 if ring is None else ring.address):
            self.fail(result)
        self._ring = ring

    def trace_layer(self, call: Call, layer: int) -> None:
        """As that of the base; of a captured call, of its replays."""
        call.layer = layer + 1

    def note_replay(self) -> None:
        """A graph that holds calls is replayed."""
        self.unverified = True

    def check_replays(self) -> None:
        """Waits for the stream and raises what launches that nobody waited for have found, replays included."""
        self._enter()
        self.unverified = False
        if result := self._native.check_device():
            self.fail(result)

    def fetch_verdicts(self) -> int:
        """Has what launches before it found copied to the host, in the order of the stream, without a wait.

        Returns where to, for `raise_fetched`; at most `FETCHES` are on their way at once.
        """
        if self.inherited:
            refuse_forked()
        self.unverified = False
        self._place = (self._place + 1) % FETCHES
        self._streams.fetch_verdicts(self._matrix, self._native.address, self._place)
        return self._place

    def raise_fetched(self, place: int) -> None:
        """Raises what was fetched to `place`, once an event behind it has been waited for.

        Waits for nothing, but once a second for the device's clock where steps are traced and all went well."""
        if self.inherited:
            refuse_forked()
        if result := self._native.check_fetched(place):
            # Only now, for it makes torch's queue run empty.
            self._enter()
            self._native.forget_fault()
            self.fail(result)

    def leave(self, result: Result, step: Step, epoch: int) -> None:
        super().leave(result, step, epoch)
        if result is Result.PEER_CLOSED:
            self._native.close_device()

    def _enter(self) -> bool:
        if self.inherited:
            refuse_forked()
        return self._streams.use_stream(self._matrix, self._native.address)

    def _is_deferred(self, wait: bool) -> bool:
        """Whether a call is only put on the stream. It empties torch's queue of launches if not."""
        if wait:
            return self._enter()
        if self.inherited:
            refuse_forked()
        return True

    def _put(self, kernel: int, call: Call, arguments: int, most_rows: int = 0) -> None:
        self.unverified = True
        self._streams.launch([self._matrix, call.positions], kernel, self._native.address, arguments, most_rows)
