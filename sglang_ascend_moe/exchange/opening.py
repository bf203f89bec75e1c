"""How ranks open an exchange: they agree on its parameters, make windows and reach each other's."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from sglang_ascend_moe.exchange.backend import Backend, Meeting
from sglang_ascend_moe.exchange.control.blocks import Hello
from sglang_ascend_moe.exchange.control.cores import workers_of
from sglang_ascend_moe.exchange.control.lifelines import RankWatch, watch_ranks
from sglang_ascend_moe.exchange.control.machine import this_machine
from sglang_ascend_moe.exchange.control.post_mortem import Recorder
from sglang_ascend_moe.exchange.control.rendezvous import agree
from sglang_ascend_moe.exchange.control.secret import read_secret
from sglang_ascend_moe.exchange.device_backend import DeviceBackend
from sglang_ascend_moe.exchange.host_backend import HostBackend
from sglang_ascend_moe.exchange.rank_options import RankOptions
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.native.codes import Result
from sglang_ascend_moe.native.session import NativeSession
from sglang_ascend_moe.windows.layout import LAYOUT_VERSION, ExchangeParameters, plan_window


class Opened(NamedTuple):
    """One rank's place in an open exchange."""

    session_id: bytes
    rank: int
    steps: ExchangeSteps
    resources: ExitStack
    """What is given back when the exchange is closed."""
    overlap: bool
    """Whether rounds are placed while experts run on the round before: every rank has more than one worker."""
    watch: RankWatch


def backend_of(options: RankOptions) -> Backend:
    """Where the windows of a rank with these options lie. Raises `InvalidInput`."""
    if options.device is None or options.device.type == "cpu":
        return HostBackend(options.workers)
    return DeviceBackend(options.device, options.windows)


def open_exchange(
    group: dist.ProcessGroup | None,
    parameters: ExchangeParameters,
    options: RankOptions = RankOptions(),  # noqa: B008 - a tuple
    *,
    first_epoch: int = 0,
) -> Opened:
    """Opens an exchange among the ranks of `group`; arguments and errors as those of `Exchange.open`.

    `first_epoch`, the same on every rank: exchanges to pretend to have behind, 0 to 2**47 - 1.
    """
    group = group or dist.group.WORLD
    rank = dist.get_rank(group)
    secret = read_secret(options.secret_file)
    patience = options.patience()
    backend = backend_of(options)
    # Tensors that are made here are written to in any mode of autograd.
    with torch.inference_mode(False), ExitStack() as bring_up, ExitStack() as kept:
        bring_up.callback(backend.close)
        hello = Hello(
            session=os.urandom(16), rank=rank, layout_version=LAYOUT_VERSION, parameters=parameters,
            process=os.getpid(), address=backend.address, cores=sorted(os.sched_getaffinity(0)),
            workers=backend.workers, node=options.node, machine=this_machine(),
        )  # fmt: skip
        hellos = agree(group, hello, secret, patience)
        # After the comparison, so that arguments that cannot be laid out are refused on every rank alike.
        layout = plan_window(parameters)
        watch = watch_ranks(group, hellos, rank, parameters.timeout_s, secret, patience)
        kept.callback(watch.close)
        meeting = Meeting(group, rank, hellos, layout, watch, secret, patience, first_epoch, kept)
        windows = backend.make_windows(meeting)
        session = backend.open_session(meeting, windows)
        if options.post_mortem is not None:
            recorder = Recorder(Path(options.post_mortem), hellos[0].session, rank, watch.nodes, options.stage)
            _record_faults(session, recorder)
        steps = ExchangeSteps(session, rank, windows, layout, getattr(torch, parameters.dtype))
        overlap = backend.overlaps_rounds and min(workers_of(hellos)) > 1
        return Opened(hellos[0].session, rank, steps, kept.pop_all(), overlap, watch)


def close_exchange(opened: Opened) -> None:
    """Leaves the exchange: peers that still wait for this rank get `PeerLost`."""
    session = opened.steps.session
    if session.inherited:
        opened.resources.pop_all()  # they are the parent's, as the windows are
        return
    session.leave(Result.PEER_CLOSED, session.step, session.epoch)
    opened.resources.close()


def _record_faults(session: NativeSession, recorder: Recorder) -> None:
    """Let `recorder` write an account of every fault that poisons the session."""
    session.watch_faults(
        lambda fault, error: recorder.write(fault, error, session.waited_s, session.read_received()),
    )
