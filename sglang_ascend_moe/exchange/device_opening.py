"""How ranks open an exchange whose windows and tensors lie on Ascend devices. No NPU has run this.

Ranks compare what they were asked for, meet in the library that gives them pooled memory, and hand the kernels the
address of each rank's window. What keeps one rank from it, all ranks refuse together.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.control.blocks import Hello
from sglang_ascend_moe.exchange.control.handover import watch_processes
from sglang_ascend_moe.exchange.control.post_mortem import Recorder
from sglang_ascend_moe.exchange.control.rendezvous import BRING_UP_TIMEOUT_S, agree, gather_frames
from sglang_ascend_moe.exchange.control.secret import Secret
from sglang_ascend_moe.exchange.opening import Opened, close_later, record_faults
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.native.device_session import DeviceSession
from sglang_ascend_moe.native.session import initialise_window
from sglang_ascend_moe.windows import allocations
from sglang_ascend_moe.windows.device import DeviceWindow, Place, lack_of_memory
from sglang_ascend_moe.windows.layout import LAYOUT_VERSION, ExchangeParameters, plan_window
from sglang_ascend_moe.windows.pooled import provider

_TEXT_BYTES = 2048


class Group(NamedTuple):
    """Who opens: moves CPU tensors."""

    group: dist.ProcessGroup
    rank: int
    secret: Secret | None

    def gather(self, data: bytes, call: str) -> list[bytes]:
        return gather_frames(self.group, data, _TEXT_BYTES, BRING_UP_TIMEOUT_S, call, self.secret)

    def agree_on(self, refusal: str, call: str) -> None:
        """Raise `Unsupported` on every rank if one of them has a `refusal`."""
        texts = [text.decode(errors="replace") for text in self.gather(refusal.encode()[:_TEXT_BYTES], call)]
        for rank, text in enumerate(texts):
            if text:
                raise Unsupported(f"rank {rank}: {text}")


def open_device_steps(
    group: dist.ProcessGroup | None,
    parameters: ExchangeParameters,
    device: torch.device,
    *,
    windows: str | None = None,
    post_mortem: str | os.PathLike[str] | None = None,
    secret: Secret | None = None,
) -> Opened:
    """Opens an exchange on `device`, the NPU that the calling thread uses; see `Exchange.create`.

    `windows` is the provider of pooled memory, None for the one that is installed. Raises on every rank `Unsupported`,
    naming a rank, what it lacks and what to change.
    """
    who = Group(group or dist.group.WORLD, dist.get_rank(group), secret)
    rank, ranks = who.rank, parameters.ranks
    with torch.inference_mode(False), ExitStack() as kept:  # as `open_steps`
        hello = Hello(
            session=os.urandom(16), rank=rank, layout_version=LAYOUT_VERSION, parameters=parameters,
            process=os.getpid(), address=b"", cores=sorted(os.sched_getaffinity(0)), workers=1,
        )  # fmt: skip
        hellos = agree(who.group, hello, secret)
        layout = plan_window(parameters)
        allocations.report(layout.total_bytes)
        source = provider(windows)
        refusal, meeting = lack_of_memory(layout.total_bytes, device), b""
        try:
            meeting = source.meeting() if rank == 0 else meeting
        except Unsupported as error:
            refusal = str(error)
        who.agree_on(refusal, "compared its memory with its window")
        meeting = who.gather(meeting, "learnt where windows are made")[0]
        try:
            pool = source.open_pool(Place(rank, ranks, torch.npu.current_device(), layout.total_bytes, meeting))
            kept.callback(pool.release)
            initialise_window(layout, pool.bases[rank], "npu")
        except Unsupported as error:
            refusal = str(error)
        # Also keeps every rank away from windows that are not prepared yet.
        who.agree_on(refusal, "made its window")
        pidfds = watch_processes(hellos, rank)
        close_later(kept, pidfds)
        session = DeviceSession(layout, rank, pool.bases, pidfds, device)
        if post_mortem is not None:
            record_faults(session, Recorder(Path(post_mortem), hellos[0].session, rank, ranks))
        mapped = [DeviceWindow(base, device) for base in pool.bases]
        steps = ExchangeSteps(session, rank, mapped, layout, getattr(torch, parameters.dtype))
        return Opened(hellos[0].session, rank, steps, kept.pop_all(), overlap=False)
