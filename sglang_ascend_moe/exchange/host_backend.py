"""Exchanges of a host: windows in shared memory, which ranks hand each other as file descriptors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.exchange.backend import Meeting
from sglang_ascend_moe.exchange.control.blocks import Hello, WindowHandle
from sglang_ascend_moe.exchange.control.cores import spin_ns_of, workers_of
from sglang_ascend_moe.exchange.control.handover import Offer, exchange_windows, open_listener, open_windows
from sglang_ascend_moe.native.session import NativeSession, initialise_window
from sglang_ascend_moe.windows.memfd import MappedWindow, create_window
from sglang_ascend_moe.windows.window import Window


class HostBackend:
    """See `Backend`."""

    overlaps_rounds = True

    def __init__(self, workers: int | None) -> None:
        """`workers`: as in `RankOptions`. Raises `InvalidInput`."""
        if workers is not None and not 1 <= workers <= 256:
            raise InvalidInput(f"workers={workers} is outside 1 .. 256")
        self.workers = workers or 0
        self._listener = open_listener()
        self.address: bytes = self._listener.getsockname()

    def close(self) -> None:
        self._listener.close()

    def make_windows(self, meeting: Meeting) -> Sequence[Window]:
        """Each rank maps all windows; mappings end with the windows. Raises `Unsupported` for ranks of two machines."""
        layout, hellos, rank = meeting.layout, meeting.hellos, meeting.rank
        refuse_far_ranks(hellos)
        with ExitStack() as descriptors:
            descriptor = create_window(layout)
            descriptors.callback(os.close, descriptor)
            own_window = MappedWindow(descriptor, layout)
            initialise_window(layout, own_window.address, first_epoch=meeting.first_epoch)
            handle = WindowHandle(
                session=hellos[0].session, rank=rank, total_bytes=layout.total_bytes, layout_digest=layout.digest()
            )
            offer = Offer(handle, descriptor)
            if len({hello.machine.network for hello in hellos}) > 1:
                received = open_windows(meeting.group, hellos, offer, meeting.secret, meeting.patience)
            else:
                received = exchange_windows(hellos, offer, self._listener, meeting.watch.ends, meeting.patience)
            for peer_descriptor in received:
                if peer_descriptor >= 0:
                    descriptors.callback(os.close, peer_descriptor)
            return [
                own_window if peer == rank else MappedWindow(peer_descriptor, layout)
                for peer, peer_descriptor in enumerate(received)
            ]

    def open_session(self, meeting: Meeting, windows: Sequence[Window]) -> NativeSession:
        addresses = [window.address for window in windows]
        workers = workers_of(meeting.hellos)[meeting.rank]
        return NativeSession(
            meeting.layout, meeting.rank, addresses, meeting.watch.ends, workers,
            spin_ns=spin_ns_of([hello.cores for hello in meeting.hellos]), first_epoch=meeting.first_epoch,
            nodes=meeting.watch.nodes,
        )  # fmt: skip


def refuse_far_ranks(hellos: Sequence[Hello]) -> None:
    """Raise `Unsupported` if a rank does not run where the first one does, so that memory cannot be shared."""
    first = hellos[0]
    for other in hellos:
        if other.machine.identity != first.machine.identity:
            raise Unsupported(
                f"rank {first.rank} runs on {first.machine.name} and rank {other.rank} on {other.machine.name}, which"
                " share no memory (another machine, or another PID namespace); without NPUs start all ranks on one"
                " machine, in one container, or use --device npu"
            )
