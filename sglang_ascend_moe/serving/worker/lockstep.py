"""Whether the ranks of a server go in step: what they begin and sample is compared, and their waits are bounded.

With speculative decoding so are the forward passes of all ranks whose MoE layers exchange rows.

Without it a rank that samples another token than those it shares its attention with goes on unnoticed, with wrong
text; and one that samples the end leaves the others waiting for it, whatever `--ascend-moe-timeout` says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, NamedTuple

import msgspec
import torch

from sglang_ascend_moe.errors import PeerFault, PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.exchange.control.lifelines import connect_ranks
from sglang_ascend_moe.exchange.control.rendezvous import gather_frames
from sglang_ascend_moe.exchange.control.waiting import Patience
from sglang_ascend_moe.serving.blame import blames_peer, collective_of
from sglang_ascend_moe.serving.worker import group_waits, layer
from sglang_ascend_moe.serving.worker.forward_passes import ForwardPasses
from sglang_ascend_moe.serving.worker.journal import Journal, JournalMemory, State, describe
from sglang_ascend_moe.serving.worker.journal_courier import Courier, counterparts
from sglang_ascend_moe.serving.worker.sizing import tokens_of_request

MOST_TOKENS = 4096
"""Of one result, to be named when they differ; all are compared."""
_PLACE_BYTES = 256


class _Place(NamedTuple):
    """Where the memory is that a rank has made for a journal, and how many tokens of an event it keeps.

    session: of the connections that carry the journal between nodes.
    """

    path: str
    tokens: int
    session: bytes


class Lockstep:
    """What this rank tells its peers of its batches; a context manager around the event loop, whose errors it explains.

    It raises `ProtocolMismatch` when ranks that share their attention have begun or sampled something else, or ranks
    that exchange rows another forward pass, also in place of an error that only says that a peer is gone, and
    `PeerTimeout` or `PeerLost` in place of gloo's errors.
    """

    def __init__(
        self,
        journal: Journal,
        phases: dict[int, str],
        patience: Patience | None,
        passes: ForwardPasses | None = None,
    ) -> None:
        """patience: of SGLang's collectives; None: they wait as long as SGLang says. passes: None without drafts."""
        self._journal = journal
        self._passes = passes
        self._phases = phases
        self._patience = patience
        self._last_seen = time.monotonic()

    def begin(self, batch: Any) -> None:
        """This rank is about to run a batch of SGLang."""
        mode = batch.forward_mode
        tokens = batch.extend_num_tokens if mode.is_extend() else len(batch.reqs)
        self._journal.begin(mode, [request.rid for request in batch.reqs], tokens or 0)
        self.compare()

    def sample(self, batch: Any, result: Any) -> None:
        """This rank has the result of a batch of SGLang. It is compared when the ranks meet again."""
        self._journal.sample(batch.forward_mode, len(batch.reqs), _bytes_of(getattr(result, "next_token_ids", None)))
        if self._passes is not None:
            self._passes.end_batch()
        self._last_seen = time.monotonic()

    def pass_forward(self, *, drafts: bool, prefill: bool) -> None:
        """This rank is about to run the draft model, or the model. Raises as `compare`."""
        if self._passes is not None:
            self._passes.begin(drafts=drafts, prefill=prefill)
            self.compare()

    def compare(self) -> None:
        """Raises `ProtocolMismatch` if a peer that has come as far as this rank came another way."""
        self._last_seen = time.monotonic()
        if problem := self._other_passes():
            raise ProtocolMismatch(problem)
        if not self._journal.agrees() and (problem := self._drift()):
            raise ProtocolMismatch(problem)

    def _other_passes(self) -> str:
        return "" if self._passes is None else self._passes.problem()

    def _drift(self) -> str:
        """In what ranks that share their attention differ, in words; empty if in nothing."""
        difference = self._journal.difference()
        if difference is None:
            return ""
        return (
            f"ranks that share their attention drifted apart: {describe(difference, self._phases)}; one of them"
            " computes wrongly, so the last answers may be wrong"
        )

    def __enter__(self) -> Lockstep:
        return self

    def __exit__(self, _kind: type | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        if error is None:
            return
        if not blames_peer(error):
            self._journal.mark(State.FAILED)
            return
        waited_s = time.monotonic() - self._last_seen
        collective = None if isinstance(error, PeerFault) else collective_of(error)
        timed_out = isinstance(error, PeerTimeout) or (
            collective is not None and waited_s >= group_waits.bound_of(collective)
        )
        self._journal.mark(State.TIMED_OUT if timed_out else State.GAVE_UP)
        if problem := self._drift() or self._other_passes():
            raise ProtocolMismatch(problem) from error
        if collective is not None:
            group_waits.explain(error, collective, self._journal, timed_out, self._patience)


_lockstep: Lockstep | None = None


def serve_in_step(original: Callable[[Any], None], scheduler: Any) -> None:
    """Around `dispatch_event_loop`: start-up is over, and from here on ranks go in step."""
    global _lockstep
    from sglang.srt.model_executor.forward_batch_info import ForwardMode
    from sglang.srt.runtime_context import get_parallel, get_spec

    serving, parallel = layer.serving(), get_parallel()
    if serving is None or parallel.world_group.world_size == 1:
        original(scheduler)
        return
    most_tokens = scheduler.max_running_requests * tokens_of_request(get_spec())
    # Those of one group of data-parallel attention, which stand side by side, have the same batches.
    size = parallel.attn_tp_size * parallel.attn_cp_size
    first = parallel.tp_rank // size * size
    journal = open_journal(serving, parallel.tp_group.ranks[first : first + size], most_tokens)
    passes = None
    if get_spec().speculative_algorithm:
        passes = ForwardPasses(open_journal(serving, parallel.moe_ep_group.ranks, 0))
    patience = None
    if scheduler.server_args.dist_timeout is None:
        patience = group_waits.bound(group_waits.gloo_groups(), serving.options.timeout_s)
    with Lockstep(journal, {mode.value: mode.name.lower() for mode in ForwardMode}, patience, passes) as _lockstep:
        original(scheduler)


def begin_batch(_scheduler: Any, batch: Any, *_: Any, **__: Any) -> None:
    """Before `Scheduler.run_batch`."""
    if _lockstep is not None:
        _lockstep.begin(batch)


def begin_forward_pass(model_runner: Any, forward_batch: Any, *_: Any, **__: Any) -> None:
    """Before `ModelRunner.forward`."""
    if _lockstep is not None:
        _lockstep.pass_forward(drafts=model_runner.is_draft_worker, prefill=forward_batch.is_extend_in_batch)


def note_result(_result: None, _scheduler: Any, batch: Any, result: Any, *_: Any, **__: Any) -> None:
    """After `Scheduler.process_batch_result`."""
    if _lockstep is not None:
        _lockstep.sample(batch, result)


def compare_when_met(_scheduler: Any, *_: Any, **__: Any) -> None:
    """Before `Scheduler.process_input_requests`, once per turn of the event loop, when the ranks have just met."""
    if _lockstep is not None:
        _lockstep.compare()


def open_journal(serving: layer.Serving, members: Collection[int], most_tokens: int) -> Journal:
    """The journal of this rank, which is compared with those of the others of `members`; every rank calls it.

    Ranks are numbered across pipeline stages, as in torch's default group. All ranks of a node map the same memory,
    which its first rank makes; `most_tokens` of an event. Raises like `gather_frames` and `connect_ranks`.
    """
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    group, rank, ranks = parallel.world_group.cpu_group, parallel.world_group.rank, parallel.world_group.world_size
    # SGLang gives each node as many ranks, in their order.
    nodes = [each * parallel.nnodes // ranks for each in range(ranks)]
    patience = Patience(serving.options.bring_up_timeout_s, "--ascend-moe-bring-up-timeout")
    first = nodes.index(nodes[rank])
    descriptor = os.memfd_create("ascend-moe-journal", os.MFD_CLOEXEC) if rank == first else -1
    try:
        own = _Place(f"/proc/{os.getpid()}/fd/{descriptor}", min(most_tokens, MOST_TOKENS), os.urandom(16))
        frames = gather_frames(
            group, msgspec.json.encode(own), _PLACE_BYTES, patience, "begun to serve", serving.secret
        )
        places = [msgspec.json.decode(frame, type=_Place) for frame in frames]
        if rank != first:
            descriptor = os.open(places[first].path, os.O_RDWR | os.O_CLOEXEC)
        memory = JournalMemory(descriptor, ranks, places[0].tokens)
        # The first rank of a node closes the descriptor when all have opened it.
        gather_frames(group, b"", 0, patience, "opened the journal", serving.secret)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    courier = None
    if len(set(nodes)) > 1:
        connections = connect_ranks(
            group, places[0].session, rank, counterparts(rank, nodes), "journal", serving.secret, patience
        )
        far = [other for other, node in enumerate(nodes) if node != nodes[rank]]
        exchange = next(iter(serving.exchanges.values()), None)
        stage = parallel.moe_ep_group.ranks
        courier = Courier(
            connections, far, lambda: [] if exchange is None else [stage[lost] for lost in exchange.gone()]
        )
    return Journal(memory, rank, [other for other in members if other != rank], courier)


def _bytes_of(tokens: Any) -> bytes:
    """Token ids of a result of SGLang, 8 bytes each; empty if it has none."""
    if tokens is None:
        return b""
    ids = torch.as_tensor(tokens)
    if ids.dtype is not torch.int64 or not ids.is_cpu:
        ids = ids.to(device="cpu", dtype=torch.int64)
    return bytes(ids.numpy().tobytes())
