"""How ranks open an exchange: they agree on its parameters, and map each other's windows."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.exchange.control.blocks import Hello, WindowHandle
from sglang_ascend_moe.exchange.control.handover import Offer, exchange_windows, open_listener, watch_processes
from sglang_ascend_moe.exchange.control.post_mortem import Recorder
from sglang_ascend_moe.exchange.control.rendezvous import agree, workers_of
from sglang_ascend_moe.exchange.control.secret import Secret
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.native.codes import Result
from sglang_ascend_moe.native.session import NativeSession, initialise_window
from sglang_ascend_moe.windows.layout import LAYOUT_VERSION, ExchangeParameters, plan_window
from sglang_ascend_moe.windows.memfd import MappedWindow, create_window


class Opened(NamedTuple):
    """One rank's place in an open exchange."""

    session_id: bytes
    rank: int
    steps: ExchangeSteps
    pidfds: ExitStack
    """Closes the process descriptors that `steps` watches."""
    overlap: bool
    """Whether every rank has more than one worker."""


def open_steps(
    group: dist.ProcessGroup | None,
    parameters: ExchangeParameters,
    *,
    workers: int | None = None,
    post_mortem: str | os.PathLike[str] | None = None,
    secret: Secret | None = None,
) -> Opened:
    """Opens an exchange among the ranks of `group`; arguments and errors as those of `Exchange.create`."""
    rank, ranks = dist.get_rank(group), parameters.ranks
    if workers is not None and not 1 <= workers <= 256:
        raise InvalidInput(f"workers={workers} is outside 1 .. 256")
    # Tensors that are made here are written to in any mode of autograd.
    with torch.inference_mode(False), ExitStack() as bring_up, ExitStack() as kept:
        listener = bring_up.enter_context(open_listener())
        hello = Hello(
            session=os.urandom(16), rank=rank, layout_version=LAYOUT_VERSION, parameters=parameters,
            process=os.getpid(), address=listener.getsockname(), cores=sorted(os.sched_getaffinity(0)),
            workers=workers or 0,
        )  # fmt: skip
        hellos = agree(group or dist.group.WORLD, hello, secret)
        # After the comparison, so that arguments that cannot be laid out are refused on every rank alike.
        layout = plan_window(parameters)
        all_workers = workers_of(hellos)

        descriptor = create_window(layout)
        bring_up.callback(os.close, descriptor)
        own_window = MappedWindow(descriptor, layout)
        initialise_window(layout, own_window.address)
        handle = WindowHandle(
            session=hellos[0].session, rank=rank, total_bytes=layout.total_bytes, layout_digest=layout.digest()
        )
        pidfds = watch_processes(hellos, rank)
        close_later(kept, pidfds)
        descriptors = exchange_windows(hellos, Offer(handle, descriptor), listener, pidfds)
        close_later(bring_up, descriptors)
        windows = [own_window if peer == rank else MappedWindow(descriptors[peer], layout) for peer in range(ranks)]
        session = NativeSession(layout, rank, [window.address for window in windows], pidfds, all_workers[rank])
        if post_mortem is not None:
            record_faults(session, Recorder(Path(post_mortem), hellos[0].session, rank, ranks))
        steps = ExchangeSteps(session, rank, windows, layout, getattr(torch, parameters.dtype))
        return Opened(hellos[0].session, rank, steps, kept.pop_all(), overlap=min(all_workers) > 1)


def close_steps(steps: ExchangeSteps, pidfds: ExitStack) -> None:
    """Leaves the exchange of an `Opened`: peers that still wait for this rank get `PeerLost`."""
    session = steps.session
    if session.inherited:
        pidfds.pop_all()  # they are the parent's, as the windows are
        return
    session.leave(Result.PEER_CLOSED, session.step, session.epoch)
    pidfds.close()


def record_faults(session: NativeSession, recorder: Recorder) -> None:
    """Let `recorder` write an account of every fault that poisons the session."""
    session.watch_faults(
        lambda fault, error: recorder.write(fault, error, session.waited_s, session.matrix.tolist()),
    )


def close_later(stack: ExitStack, descriptors: list[int]) -> None:
    """Close the descriptors, but those of -1, with `stack`."""
    for descriptor in descriptors:
        if descriptor >= 0:
            stack.callback(os.close, descriptor)
