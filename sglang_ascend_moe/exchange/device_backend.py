"""Exchanges whose windows and tensors lie on Ascend devices. No NPU has run this.

Ranks meet in the library that gives them pooled memory, and hand the kernels the address of each rank's window. What
keeps one rank from it, all ranks refuse together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.backend import Meeting
from sglang_ascend_moe.exchange.control.lifelines import meeting_place
from sglang_ascend_moe.exchange.control.network import own_host
from sglang_ascend_moe.exchange.control.rendezvous import gather_frames
from sglang_ascend_moe.native.device_session import DeviceSession
from sglang_ascend_moe.native.session import NativeSession, initialise_window
from sglang_ascend_moe.windows import allocations
from sglang_ascend_moe.windows.device import DeviceWindow, Place, lack_of_memory
from sglang_ascend_moe.windows.pooled import provider
from sglang_ascend_moe.windows.window import Window

_TEXT_BYTES = 2048
LOOPBACK = "127.0.0.1"


class DeviceBackend:
    """See `Backend`."""

    workers = 1
    address = b""
    overlaps_rounds = False

    def __init__(self, device: torch.device, windows: str | None) -> None:
        """`device`: the NPU that the calling thread uses; `windows`: the provider of pooled memory, None for the one
        that is installed."""
        self._device = device
        self._provider = windows

    def close(self) -> None:
        """Nothing: the provider shares windows."""

    def make_windows(self, meeting: Meeting) -> Sequence[Window]:
        """Raises on every rank `Unsupported`, naming a rank, what it lacks and what to change."""
        layout, rank = meeting.layout, meeting.rank
        allocations.report(layout.total_bytes)
        source = provider(self._provider)
        refusal, place = lack_of_memory(layout.total_bytes, self._device), b""
        try:
            place = source.meeting(_own_host(meeting)) if rank == 0 else place
        except Unsupported as error:
            refusal = str(error)
        _refuse_together(meeting, refusal, "compared its memory with its window")
        place = _gather(meeting, place, "learnt where windows are made")[0]
        try:
            device = torch.npu.current_device()
            pool = source.open_pool(Place(rank, meeting.watch.nodes, device, layout.total_bytes, place))
            meeting.resources.callback(pool.release)
            initialise_window(layout, pool.bases[rank], "npu", first_epoch=meeting.first_epoch)
        except Unsupported as error:
            refusal = str(error)
        # Also keeps every rank away from windows that are not prepared yet.
        _refuse_together(meeting, refusal, "made its window")
        return [DeviceWindow(base, self._device) for base in pool.bases]

    def open_session(self, meeting: Meeting, windows: Sequence[Window]) -> NativeSession:
        addresses = [window.address for window in windows]
        return DeviceSession(
            meeting.layout, meeting.rank, addresses, meeting.watch.ends, self._device,
            first_epoch=meeting.first_epoch, nodes=meeting.watch.nodes,
        )  # fmt: skip


def _own_host(meeting: Meeting) -> str:
    """The address of this machine at which all ranks reach it. Raises `InvalidInput`."""
    one_node = len(set(meeting.watch.nodes)) == 1
    return LOOPBACK if one_node else own_host(meeting_place(meeting.group))


def _gather(meeting: Meeting, data: bytes, call: str) -> list[bytes]:
    return gather_frames(meeting.group, data, _TEXT_BYTES, meeting.patience, call, meeting.secret)


def _refuse_together(meeting: Meeting, refusal: str, call: str) -> None:
    """Raise `Unsupported` on every rank if one of them has a `refusal`."""
    texts = [text.decode(errors="replace") for text in _gather(meeting, refusal.encode()[:_TEXT_BYTES], call)]
    for rank, text in enumerate(texts):
        if text:
            raise Unsupported(f"rank {rank}: {text}")
