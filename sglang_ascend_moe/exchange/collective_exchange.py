"""The buffer-centric baseline: permute, all-to-all, permute back. It runs only when it is asked for.

Every row is moved four times on its way to an expert (gather into a send buffer, the collective, the receive buffer,
reordering by expert) and four times on its way back. It needs no window and takes any number of rows in one round,
which makes it the yardstick for the other schedules: same surface, same order of rows, bit-identical results.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from sglang_ascend_moe.errors import (
    CaptureRefused,
    InvalidInput,
    PeerLost,
    ProtocolMismatch,
    SessionPoisoned,
    Unsupported,
)
from sglang_ascend_moe.exchange.control.blocks import Hello
from sglang_ascend_moe.exchange.control.lifelines import RankWatch, watch_ranks
from sglang_ascend_moe.exchange.control.machine import this_machine
from sglang_ascend_moe.exchange.control.rendezvous import agree
from sglang_ascend_moe.exchange.control.secret import read_secret
from sglang_ascend_moe.exchange.expert_exchange import Phase
from sglang_ascend_moe.exchange.observation import Observation, rows_by_rank
from sglang_ascend_moe.exchange.rank_options import RankOptions
from sglang_ascend_moe.exchange.schedules.inputs import (
    RoutedTokens,
    problem_with_expert_out,
    problem_with_phase,
    routed_tokens,
)
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native.codes import InputError, Kind
from sglang_ascend_moe.native.faults import input_problem
from sglang_ascend_moe.windows.layout import (
    LAYOUT_VERSION,
    ExchangeParameters,
    Regions,
    WindowMemory,
    check_parameters,
    exchange_parameters,
)

_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(ExchangeParameters)}
_KINDS = ("an invalid phase", "dispatch(phase='decode')", "dispatch(phase='prefill')", "combine", "failure")
_INVALID, _DECODE, _PREFILL, _COMBINE, _FAILURE = range(len(_KINDS))
_HEADER_WORDS = 3
"""Of a record: kind, epoch of the dispatch meant, 1 if this rank has something to object. Counts follow."""
_OBJECTION_BYTES = 512


class _Ticket(NamedTuple):
    """The way back of one dispatch."""

    exchange: CollectiveExchange
    kind: Kind
    epoch: int
    weights: Tensor
    """[tokens, topk] float32."""
    routed: Tensor
    """[tokens, topk] bool."""
    position: Tensor
    """[tokens, topk] int64, where the row of (token, k) stands among the rows this rank sent."""
    sent: list[int]
    """Rows sent to each rank."""
    received: list[int]
    """Rows received from each rank."""
    order: Tensor
    """[received rows] int64, the arrival number of each expert row."""


class CollectiveExchange:
    """`Exchange` over `torch.distributed.all_to_all_single`.

    Every rank takes part in every call, in the same order. Waits are bounded by the timeout of the group. `epoch` is
    the number of dispatches begun so far. There are no gradients.
    """

    def __init__(self, group: dist.ProcessGroup, parameters: ExchangeParameters, watch: RankWatch) -> None:
        """Use `open`."""
        self._group = group
        self._watch = watch
        self.rank = dist.get_rank(group)
        self.parameters = parameters
        self.epoch = 0
        self.observation = Observation(parameters.ranks)
        self.rows_by_rank = [0] * parameters.ranks
        self._dtype = getattr(torch, parameters.dtype)
        self._poison: str | None = None

    @classmethod
    def open(
        cls,
        group: dist.ProcessGroup,
        parameters: ExchangeParameters,
        options: RankOptions = RankOptions(),  # noqa: B008
    ) -> CollectiveExchange:
        """Opens an exchange on every rank of `group`, a group that can move CPU tensors and whose timeout bounds every
        wait. Of `options` only `secret_file`, `bring_up_timeout_s` and `node` mean anything here.

        Raises on every rank: `InvalidInput` for parameters out of range, `Unsupported` for quantisation, padded layout,
        `verify` and `window_bytes` (there is no window), `ProtocolMismatch` if ranks differ.
        """
        hello = Hello(
            session=os.urandom(16), rank=dist.get_rank(group), layout_version=LAYOUT_VERSION, parameters=parameters,
            process=os.getpid(), address=b"", cores=[], workers=1, node=options.node, machine=this_machine(),
        )  # fmt: skip
        secret, patience = read_secret(options.secret_file), options.patience()
        hellos = agree(group, hello, secret, patience)
        check_parameters(parameters)
        for name in ("quant", "window_bytes", "layout", "verify", "counts"):
            value, default = getattr(parameters, name), _DEFAULTS[name]
            if value != default:
                raise Unsupported(
                    f"{name}={value!r}: the collective schedule has no window and moves rows as they are; pass"
                    f" {name}={default!r}"
                )
        watch = watch_ranks(group, hellos, hello.rank, parameters.timeout_s, secret, patience)
        return cls(group, parameters, watch)

    @classmethod
    def create(cls, group: dist.ProcessGroup, **fields: Any) -> CollectiveExchange:
        """`open` with the fields of `ExchangeParameters`, but ranks, as keywords."""
        return cls.open(group, exchange_parameters(ranks=dist.get_world_size(group), **fields))

    @property
    def nodes(self) -> list[int]:
        """As `Exchange.nodes`."""
        return self._watch.nodes

    def gone(self) -> list[int]:
        """As `Exchange.gone`."""
        return self._watch.gone()

    @property
    def window(self) -> WindowMemory:
        """There is none."""
        return WindowMemory(regions=Regions(*[0] * len(Regions.__struct_fields__)), total=0, capacity_rows=0)

    @property
    def epochs(self) -> list[int]:
        """None: without windows a rank does not know how far the others are."""
        return []

    @property
    def waited_s(self) -> list[float]:
        """None: a collective does not say which rank it waited for."""
        return []

    def dispatch(self, x: Tensor, topk_ids: Tensor, topk_weights: Tensor, *, phase: Phase = "decode") -> ExpertRows:
        """Send every routed row of `x` to the rank of its expert.

        `x` [tokens, hidden] of the exchange's dtype, `topk_ids` [tokens, topk] int32 or int64 in -1..num_experts-1
        (-1 = not routed), `topk_weights` [tokens, topk] of float32, bfloat16, float16 or float64; 0 tokens are allowed.

        Raises on every rank: `InvalidInput` if one rank's arguments are wrong, `ProtocolMismatch` if phases differ;
        the exchange stays usable. `PeerLost` if a peer is gone, `SessionPoisoned` after that.
        """
        begun_ns = time.perf_counter_ns()
        self._check_usable()
        hidden, topk = self.parameters.hidden, self.parameters.topk
        given = routed_tokens(x, topk_ids, topk_weights, hidden=hidden, topk=topk, dtype=self._dtype)
        objection = given if isinstance(given, str) else self._objection_to_values(given)
        if problem := problem_with_phase(phase):
            objection, kind = problem, _INVALID
        else:
            kind = _DECODE if phase == "decode" else _PREFILL
        tokens = cast(RoutedTokens, given)  # it is, if there is no objection
        counts = None if objection else self._count(tokens.ids)
        matrix = self._announce(kind, self.epoch + 1, objection, counts)
        self.epoch += 1

        ids = tokens.ids.to(torch.int64)
        routed = ids >= 0
        places = routed.flatten().nonzero().squeeze(1)
        places = places[torch.argsort(ids.flatten()[places], stable=True)]
        experts = self.parameters.num_experts // self.parameters.ranks
        sent = matrix[self.rank].view(self.parameters.ranks, experts).sum(1).tolist()
        arriving = matrix[:, self.rank * experts : (self.rank + 1) * experts]
        received = arriving.sum(1).tolist()
        arrived = self._all_to_all(tokens.x[places // topk], sent, received)

        # Rows arrive in (source, local expert) blocks; experts want them in (local expert, source) blocks.
        block = torch.arange(experts) * self.parameters.ranks + torch.arange(self.parameters.ranks).unsqueeze(1)
        order = torch.argsort(block.flatten().repeat_interleave(arriving.flatten()), stable=True)
        position = torch.zeros(ids.numel(), dtype=torch.int64)
        position[places] = torch.arange(len(places))
        ticket = _Ticket(
            exchange=self,
            kind=Kind.DECODE if phase == "decode" else Kind.PREFILL,
            epoch=self.epoch,
            weights=tokens.weights.clone(),
            routed=routed,
            position=position.view(ids.shape),
            sent=sent,
            received=received,
            order=order,
        )
        rows = arrived[order]
        self.rows_by_rank = rows_by_rank(matrix)
        self.observation.counters.dispatched(
            ticket.kind, begun_ns, len(tokens.x), len(rows), max(self.rows_by_rank), sum(self.rows_by_rank)
        )
        return ExpertRows(rows=rows, scales=None, counts=arriving.sum(0), out=torch.empty_like(rows), ticket=ticket)

    def combine(self, expert_out: Tensor, rows: ExpertRows, *, out: Tensor | None = None) -> Tensor:
        """Bring the experts' results back: [tokens, hidden] in x's dtype, sums in float32 and in k order; written into
        `out` if that is given.

        `expert_out` is `rows.out` or any [at least counts.sum(), hidden] tensor of the exchange's dtype. May be called
        again with the same handle, by every rank, until `slots` more dispatches were made.

        Raises on every rank `InvalidInput` for a stale handle or a wrong `expert_out`, `ProtocolMismatch` if ranks
        combine different handles; the exchange stays usable. `PeerLost`, `SessionPoisoned` as `dispatch`.
        """
        begun_ns = time.perf_counter_ns()
        self._check_usable()
        objection = self._objection_to_handle(expert_out, rows)
        self._announce(_COMBINE, self.epoch if objection else rows.ticket.epoch, objection)
        ticket: _Ticket = rows.ticket

        back = torch.empty((len(ticket.order), self.parameters.hidden), dtype=self._dtype)
        back[ticket.order] = expert_out.detach()[: len(ticket.order)]
        returned = self._all_to_all(back, ticket.received, ticket.sent)
        del back  # as large as the rows

        total = torch.zeros((len(ticket.weights), self.parameters.hidden), dtype=torch.float32)
        # Without a row there is nothing that a position could point at.
        for k in range(self.parameters.topk if len(returned) else 0):
            addend = ticket.weights[:, k : k + 1] * returned[ticket.position[:, k]].float()
            total = torch.where(ticket.routed[:, k : k + 1], total + addend, total)
        self.observation.counters.combined(ticket.kind, begun_ns)
        return total.to(self._dtype) if out is None else out.copy_(total)

    def run(
        self,
        x: Tensor,
        topk_ids: Tensor,
        topk_weights: Tensor,
        experts: Callable[[ExpertRows], None],
        *,
        phase: Phase = "decode",
        out: Tensor | None = None,
        wait: bool = True,  # noqa: ARG002 - a collective waits
        most_tokens: int | None = None,  # noqa: ARG002
    ) -> Tensor:
        """Dispatch, `experts`, combine. `experts` writes `rows.out` and is called once, also with zero rows.

        If `experts` raises on one rank, the others raise `PeerLost` naming it.
        """
        rows = self.dispatch(x, topk_ids, topk_weights, phase=phase)
        try:
            with torch.no_grad():
                experts(rows)
        except Exception as error:
            self._announce_failure(rows, f"its experts raised {type(error).__name__}: {error}")
            raise
        return self.combine(rows.out, rows, out=out)

    def prepare(self, *_: object, **__: object) -> Callable[[], None]:
        """Raises `CaptureRefused`: what a collective allocates and waits for cannot be replayed."""
        raise CaptureRefused("the collective schedule does not run in graphs; use another, or no graphs")

    unverified = False

    def note_replay(self) -> None:
        """Nothing: there are none."""

    def check_replays(self) -> None:
        """Nothing: there are none."""

    def fetch_verdicts(self) -> int:
        """Nothing, as `check_replays`."""
        return 0

    def raise_fetched(self, _fetched: int) -> None:
        """Nothing, as `check_replays`."""

    def close(self) -> None:
        """Give up the exchange. The group stays the caller's."""
        self._poison = "it was closed"
        self._watch.close()

    def __enter__(self) -> CollectiveExchange:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_usable(self) -> None:
        if self._poison is not None:
            raise SessionPoisoned(f"the exchange cannot be used: {self._poison}; create a new one on a new group")

    def _count(self, topk_ids: Tensor) -> Tensor:
        """[num_experts] int64, rows this rank sends to each expert."""
        return torch.bincount(topk_ids[topk_ids >= 0].to(torch.int64), minlength=self.parameters.num_experts)

    def _objection_to_values(self, given: RoutedTokens) -> str | None:
        """What is wrong with the number of tokens or an expert's id, or None."""
        options = self.parameters
        bounds = {"num_experts": options.num_experts, "max_tokens": options.max_tokens}
        if len(given.x) > options.max_tokens:
            return input_problem(InputError.TOKENS, len(given.x), **bounds)
        wrong = given.ids[(given.ids < -1) | (given.ids >= options.num_experts)]
        if len(wrong):
            return input_problem(InputError.EXPERT_ID, int(wrong[0]), **bounds)
        if options.distinct_topk:
            ordered = given.ids.sort(dim=1).values
            repeated = ordered[:, 1:][(ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)]
            if len(repeated):
                return input_problem(InputError.REPEATED_EXPERT, int(repeated[0]), **bounds)
        return None

    def _objection_to_handle(self, expert_out: Tensor, rows: ExpertRows) -> str | None:
        """What is wrong with the arguments of a combine, or None."""
        ticket = rows.ticket if isinstance(rows, ExpertRows) else rows
        if not isinstance(ticket, _Ticket) or ticket.exchange is not self:
            return f"rows of {type(ticket).__name__} were not dispatched by this exchange; combine what it dispatched"
        if problem := problem_with_expert_out(
            expert_out, rows=len(ticket.order), hidden=self.parameters.hidden, dtype=self._dtype
        ):
            return problem
        if self.epoch - ticket.epoch >= self.parameters.slots:
            return (
                f"the handle of epoch {ticket.epoch} is stale at epoch {self.epoch}: its slot was dispatched again; "
                f"combine earlier or raise slots={self.parameters.slots}"
            )
        return None

    def _announce_failure(self, rows: ExpertRows, reason: str) -> None:
        """Tell the peers, who are about to combine, that this rank will not."""
        epoch = rows.ticket.epoch
        self._record(_FAILURE, epoch, reason, None)
        self._poison = f"rank {self.rank} failed at epoch {epoch}: {reason}"

    def _announce(self, kind: int, epoch: int, objection: str | None, counts: Tensor | None = None) -> Tensor:
        """Take part in the next step of all ranks; return their counts [ranks, experts].

        Raises, on all ranks alike, if one of them failed, objects or does something else.
        """
        records, objections = self._record(kind, epoch, objection, counts)
        kinds, epochs, objecting = records[:, :_HEADER_WORDS].t().tolist()
        for rank in range(self.parameters.ranks):
            if kinds[rank] == _FAILURE:
                self._poison = f"rank {rank} failed at epoch {epochs[rank]}: {objections[rank]}"
                raise PeerLost(self._poison)
        for rank in range(self.parameters.ranks):
            if objecting[rank]:
                raise InvalidInput(f"rank {rank}: {objections[rank]}")
        for rank in range(1, self.parameters.ranks):
            if (kinds[rank], epochs[rank]) != (kinds[0], epochs[0]):
                raise ProtocolMismatch(
                    f"rank 0 calls {_KINDS[kinds[0]]} of epoch {epochs[0]}, rank {rank} calls {_KINDS[kinds[rank]]} of "
                    f"epoch {epochs[rank]}; make the same calls with the same phase on every rank"
                )
        return records[:, _HEADER_WORDS:]

    def _record(
        self, kind: int, epoch: int, objection: str | None, counts: Tensor | None
    ) -> tuple[Tensor, dict[int, str]]:
        """Exchange one record, and the objections if there are any: ([ranks, words], objection of each rank)."""
        record = torch.zeros(_HEADER_WORDS + self.parameters.num_experts, dtype=torch.int64)
        record[0], record[1], record[2] = kind, epoch, int(objection is not None)
        if counts is not None:
            record[_HEADER_WORDS:] = counts
        records = self._gather(record)
        if not records[:, 2].any():
            return records, {}
        text = (objection or "").encode()[:_OBJECTION_BYTES]
        texts = self._gather(torch.tensor(list(text.ljust(_OBJECTION_BYTES, b"\0")), dtype=torch.uint8))
        decoded = (bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in texts)
        return records, dict(enumerate(decoded))

    def _gather(self, mine: Tensor) -> Tensor:
        """[n] of every rank -> [ranks, n]."""
        gathered = torch.empty((self.parameters.ranks, *mine.shape), dtype=mine.dtype)
        self._collective(dist.all_gather, list(gathered.unbind(0)), mine)
        return gathered

    def _all_to_all(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Move rows [sum(sent), hidden], sorted by destination; return [sum(received), hidden], sorted by source."""
        arrived = torch.empty((sum(received), self.parameters.hidden), dtype=self._dtype)
        # As bytes, because a backend need not know the dtype of what it moves.
        target, source = arrived.view(torch.uint8), rows.contiguous().view(torch.uint8)
        self._collective(dist.all_to_all_single, target, source, received, sent)
        return arrived

    def _collective(self, operation: Callable[..., Any], *arguments: Any) -> None:
        try:
            operation(*arguments, group=self._group)
        except RuntimeError as error:
            # torch.distributed reports a dead or silent peer as RuntimeError and does not say which one.
            self._poison = f"a collective of epoch {self.epoch} failed on rank {self.rank}: {error}"
            raise PeerLost(self._poison) from error
