"""What differs between exchanges over the memory of the host and over that of NPUs: windows, and who serves them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple, Protocol

import torch.distributed as dist

from sglang_ascend_moe.exchange.control.blocks import Hello
from sglang_ascend_moe.exchange.control.lifelines import RankWatch
from sglang_ascend_moe.exchange.control.secret import Secret
from sglang_ascend_moe.exchange.control.waiting import Patience
from sglang_ascend_moe.native.session import NativeSession
from sglang_ascend_moe.windows.layout import WindowLayout
from sglang_ascend_moe.windows.window import Window


class Meeting(NamedTuple):
    """The ranks that open an exchange together, once they have agreed on its parameters.

    hellos: [ranks]. patience: how long ranks wait for each other. first_epoch: exchanges to pretend to have behind.
    resources: what is given back when the exchange is closed.
    """

    group: dist.ProcessGroup
    rank: int
    hellos: list[Hello]
    layout: WindowLayout
    watch: RankWatch
    secret: Secret | None
    patience: Patience
    first_epoch: int
    resources: ExitStack


class Backend(Protocol):
    """Makes windows, shares them, and opens the kernels' session over them. Used once, by one rank."""

    workers: int
    """Threads that this rank asks for, as `Hello` says it."""
    address: bytes
    """Where peers ask for this rank's window; empty if they do not."""
    overlaps_rounds: bool
    """Whether rounds can be placed while experts run on the round before."""

    def make_windows(self, meeting: Meeting) -> Sequence[Window]:
        """The windows of all ranks, [ranks], prepared by their owners.

        Raises on every rank: `Unsupported` naming what a rank lacks, `PeerLost` or `PeerTimeout`.
        """

    def open_session(self, meeting: Meeting, windows: Sequence[Window]) -> NativeSession:
        """The session of this rank over `windows`."""

    def close(self) -> None:
        """After opening, whether it went well or not: ends what only opening needed."""
