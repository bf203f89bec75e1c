"""Exchange: the one object that a mixture-of-experts layer talks to."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import InvalidInput, SessionPoisoned
from sglang_ascend_moe.exchange.control.trace_file import TraceFile
from sglang_ascend_moe.exchange.expert_exchange import Phase
from sglang_ascend_moe.exchange.observation import Observation, rows_by_rank
from sglang_ascend_moe.exchange.opening import Opened, close_exchange, open_exchange
from sglang_ascend_moe.exchange.rank_options import RankOptions
from sglang_ascend_moe.exchange.schedules.decode import prepare_decode, run_decode
from sglang_ascend_moe.exchange.schedules.inputs import (
    RoutedTokens,
    problem_with_expert_out,
    problem_with_experts,
    problem_with_phase,
    problem_with_result,
    routed_tokens,
    wrong_kind,
)
from sglang_ascend_moe.exchange.schedules.prefill import run_prefill
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.exchange.schedules.steps import ExchangeSteps
from sglang_ascend_moe.native.codes import Kind, Step
from sglang_ascend_moe.native.library import native_types
from sglang_ascend_moe.native.session import StepHook
from sglang_ascend_moe.windows.layout import (
    ExchangeParameters,
    WindowMemory,
    exchange_parameters,
    plan_window,
    window_memory,
)

_KINDS = {"decode": Kind.DECODE, "prefill": Kind.PREFILL}


class Exchange:
    """Moves token rows to the experts of other ranks and their results back, without relay buffers.

    Made by `Exchange.open` or `create`. Every rank takes part in every call, in the same order, ranks without tokens
    included. Not thread-safe. A context manager; leaving it after an exception tells the other ranks. There are no
    gradients: no result has a history, whatever the inputs have.
    """

    def __init__(self, opened: Opened) -> None:
        """Use `open` or `create`."""
        self.rank = opened.rank
        self.layout = opened.steps.layout
        self.parameters = self.layout.parameters
        self._identity = (opened.session_id, opened.rank)
        self._opened: Opened | None = opened
        self._dispatch_fitting = opened.steps.dispatch_fitting
        self._watch = opened.watch
        # A padded window cannot be halved.
        self._overlap = opened.overlap and not self.layout.expert_rows

    @classmethod
    def open(
        cls,
        group: dist.ProcessGroup | None,
        parameters: ExchangeParameters,
        options: RankOptions = RankOptions(),  # noqa: B008 - a tuple
    ) -> Exchange:
        """Opens an exchange among the ranks of `group`; every rank calls it with the same parameters.

        group: moves CPU tensors (gloo), used for bring-up only; None is the default group.

        Raises on every rank: `InvalidInput`, `Unsupported` or `WindowTooSmall` naming the parameter, `ProtocolMismatch`
        if ranks differ, `PeerLost` or `PeerTimeout` if a rank does not come.
        """
        return cls(open_exchange(group, parameters, options))

    @classmethod
    def create(cls, group: dist.ProcessGroup | None, **fields: Any) -> Exchange:
        """`open` with the fields of `ExchangeParameters` (but ranks, which the group says) and of `RankOptions` as
        keywords: `Exchange.create(group, num_experts=8, hidden=64, max_tokens=16, topk=2, dtype=torch.bfloat16)`.

        Raises as `open`, `InvalidInput` also for a keyword that is no field of theirs.
        """
        options = RankOptions(**{name: fields.pop(name) for name in RankOptions._fields if name in fields})
        return cls.open(group, exchange_parameters(ranks=dist.get_world_size(group), **fields), options)

    @staticmethod
    def memory(*, ranks: int, **fields: Any) -> WindowMemory:
        """The bytes of one rank's window, by region, before anything is allocated; keywords as for `create`.

        Raises `InvalidInput`, `Unsupported` or `WindowTooSmall` as `open`.
        """
        return window_memory(plan_window(exchange_parameters(ranks=ranks, **fields)))

    @property
    def window(self) -> WindowMemory:
        """The bytes of this rank's window, by region."""
        return window_memory(self.layout)

    @property
    def epoch(self) -> int:
        """Exchanges begun so far by this rank."""
        return self.epochs[self.rank]

    @property
    def nodes(self) -> list[int]:
        """[ranks] the node on which each runs, all the same on one machine."""
        return self._watch.nodes

    def gone(self) -> list[int]:
        """The ranks whose process has ended, or whose machine has been silent for `timeout_s`."""
        return self._watch.gone()

    @property
    def observation(self) -> Observation:
        """What this exchange has done so far, counted."""
        return self._steps.observation

    @property
    def epochs(self) -> list[int]:
        """Exchanges begun so far by every rank, as their windows say at this moment."""
        return self._steps.epochs()

    @property
    def waited_s(self) -> list[float]:
        """Seconds for which each rank has held this one up so far."""
        return self._steps.session.waited_s

    @property
    def counts_matrix(self) -> torch.Tensor:
        """int32 [ranks, experts of this rank]: rows from each rank to each in the last dispatch; a view of live
        state."""
        return self._steps.session.received

    @property
    def rows_by_rank(self) -> list[int]:
        """Rows that each rank received in the last dispatch."""
        return rows_by_rank(self._steps.session.counted)

    def watch_steps(self, hook: StepHook | None) -> None:
        """Calls `hook(step)` as each protocol step begins on this rank; for tests and tracing. None ends it."""
        self._steps.session.watch_steps(hook)

    def trace(self, folder: str | os.PathLike[str] | None, *, stage: int | None = None) -> None:
        """Writes down each step of this rank from now on in a file in `folder`, for `ascend-moe trace`; None ends it.

        The file has room for the last 2**17 events: steps, and the layers that they are of. stage: as in `RankOptions`.

        On a device they come into the file as calls are waited for or checked, of at most 256 exchanges each time.

        Raises `InvalidInput` for a folder that cannot be written.
        """
        session = self._steps.session
        if folder is None:
            session.trace(None)
        else:
            session.trace(lambda: TraceFile(Path(folder), *self._identity, self.parameters, stage))

    def dispatch(
        self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, *, phase: Phase = "decode"
    ) -> ExpertRows:
        """Places every routed row of `x` into the window of the rank that holds its expert.

        x [tokens, hidden] in the exchange's dtype; topk_ids [tokens, topk] int32 or int64, -1 = not routed;
        topk_weights [tokens, topk] of float32, bfloat16, float16 or float64, used by combine. Rows of tokens that are
        not routed may hold anything. The result's tensors are views of the window, valid until the next dispatch of the
        same slot; they have no gradient.

        Raises on every rank: `InvalidInput`, `WindowTooSmall` if the rows need more than one round, `ProtocolMismatch`
        if ranks take different phases (the exchange stays usable after these); `PeerLost`, `PeerTimeout`,
        `SessionPoisoned`.
        """
        # The way of nearly all calls: docs/kernels-host.md says what each object costs that it touches.
        rows = None if launches.capturing() else self._dispatch_fitting(x, topk_ids, topk_weights, phase)
        if rows.__class__ is ExpertRows:
            return rows
        steps = self._steps
        if rows is not None:
            steps.session.fail(rows)
        kind = self._kind(phase)
        return steps.dispatch(self._checked(x, topk_ids, topk_weights, kind), kind, keep_weights=True)

    def combine(self, expert_out: torch.Tensor, rows: ExpertRows, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Each token's weighted sum over its experts' results: [tokens, hidden] in the exchange's dtype.

        Written into `out` if that is given. Computed in fp32, `sum = sum + weight * value` in k order from zero,
        multiply and add not fused, rounded once; zeros for tokens that are not routed. `expert_out` is `rows.out`, or
        [at least counts.sum(), hidden], which is then copied into it once. The result has no gradient, even if
        `expert_out` has one. A dispatch may be combined again, by every rank; new results then have to come as a tensor
        of their own, for `rows.out` may be read by others until the next combine has begun.

        Raises `InvalidInput` for rows whose slot has been dispatched again or a wrong tensor (on this rank, which
        the others then see as a `PeerTimeout` unless the call is made again); `PeerLost`, `PeerTimeout`,
        `SessionPoisoned`.
        """
        ticket = rows.ticket if isinstance(rows, ExpertRows) else rows
        if not isinstance(ticket, native_types().Ticket):
            raise InvalidInput(f"rows of {type(ticket).__name__} were not dispatched by an Exchange")
        steps = self._steps
        in_place = expert_out is rows.out
        if not in_place and (problem := problem_with_expert_out(
            expert_out, rows=ticket.rows_needed, hidden=self.parameters.hidden, dtype=steps.dtype, device=steps.device
        )):  # fmt: skip
            raise InvalidInput(problem)
        given = out
        if out is None:
            out = torch.empty(ticket.tokens, self.parameters.hidden, dtype=steps.dtype, device=steps.device)
        if in_place and steps.combine_fitting(rows, out):
            return out
        if not ticket.call.fits_out(out) and (problem := self._problem_with_result(given, ticket.tokens)):
            raise InvalidInput(problem)
        steps.combine(expert_out, rows, out)
        return out

    def run(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        experts: Callable[[ExpertRows], None],
        *,
        phase: Phase = "decode",
        out: torch.Tensor | None = None,
        wait: bool = True,
        most_tokens: int | None = None,
    ) -> torch.Tensor:
        """The whole layer: dispatch, `experts(rows)`, combine; in prefill with as many rounds as the window needs.

        `experts` writes `rows.out`, without gradients (`torch.no_grad`), and is called at least once on every rank. If
        it raises, the other ranks get a `PeerLost` that names this one, and the exchange is poisoned. Arguments, result
        and errors otherwise as in `dispatch` and `combine`.

        wait: False: on an NPU, with one slot, only a plan of prefill is waited for, and what the rest finds is raised
        by `check_replays` or `raise_fetched`. In decode that takes `most_tokens`, that all ranks bring together at
        most, and the same on each: more are refused as by a smaller window; None: not known, and dispatch is waited
        for.
        """
        kind = self._kind(phase)
        prefill = kind == Kind.PREFILL
        first_kind = Kind.PLAN if prefill else kind
        tokens = self._checked(x, topk_ids, topk_weights, first_kind)
        if problem := problem_with_experts(experts) or self._problem_with_result(out, x.shape[0]):
            self._steps.refuse(first_kind, problem)
        out = torch.empty(tokens.x.shape, dtype=tokens.x.dtype, device=self._steps.device) if out is None else out
        watched = self._watched(experts)
        steps = self._steps
        wait = wait or not steps.session.defers
        if prefill:
            overlap = self._overlap
            _run_or_leave(steps, run_prefill, steps, self._identity, tokens, watched, out, overlap=overlap, wait=wait)
        else:
            most_rows = self._most_rows(most_tokens)
            _run_or_leave(steps, run_decode, steps, tokens, watched, out, wait=wait, most_rows=most_rows)
        return out

    @property
    def unverified(self) -> bool:
        """Whether there are calls, replays included, that nobody waited for and of which nobody has asked what they
        found."""
        return self._steps.session.unverified

    def note_replay(self) -> None:
        """To be called when a device graph that holds this exchange is replayed."""
        self._steps.session.note_replay()

    def check_replays(self) -> None:
        """Raises what calls that nobody waited for, in replays of device graphs too, found wrong, after waiting for
        them.

        To be called before anything made of a replay's results leaves the device. Nothing on the host.
        """
        self._steps.session.check_replays()

    def fetch_verdicts(self) -> int:
        """`check_replays` without a wait of its own, in two parts: this one puts a copy on the current stream.

        It is put behind the replays and before an event that the caller waits for anyway. Returns what `raise_fetched`
        takes; at most eight are on their way at once. Nothing on the host.
        """
        return self._steps.session.fetch_verdicts()

    def raise_fetched(self, fetched: int) -> None:
        """Raises what replays before that `fetch_verdicts` found wrong; the event behind it has been waited for."""
        self._steps.session.raise_fetched(fetched)

    def prepare(
        self,
        x: torch.Tensor,
        topk_ids: torch.Tensor,
        topk_weights: torch.Tensor,
        experts: Callable[[ExpertRows], None],
        out: torch.Tensor,
        *,
        most_tokens: int | None = None,
    ) -> Callable[[], None]:
        """A decode `run` over tensors that keep their addresses, as graphs need it; the other ranks may run or replay.

        most_tokens: that all ranks ever bring to it together, and the same on each, so that in a graph no more rows
        than these have places are handed to `experts`; a replay with more is refused as by a smaller window. None: not
        known.

        Each call of the returned function runs the layer on what the tensors hold then, and writes `out` [tokens,
        hidden]; it neither allocates memory of the device nor moves a tensor. Raises `CaptureRefused` for tensors that
        would have to be copied first: x and out need dense rows, ids contiguous, weights float32 and contiguous.
        """
        routed = self._routed(x, topk_ids, topk_weights)
        if isinstance(routed, str):
            raise InvalidInput(routed)
        if problem := problem_with_experts(experts) or wrong_kind(out=out):
            raise InvalidInput(problem)
        if (out.shape, out.dtype, out.device) != (x.shape, x.dtype, x.device):
            raise InvalidInput(f"out is {tuple(out.shape)} of {out.dtype} on {out.device}; it must be as x")
        tokens = RoutedTokens(x, topk_ids, topk_weights)
        run = prepare_decode(self._steps, tokens, self._watched(experts), out, most_rows=self._most_rows(most_tokens))
        return partial(_run_or_leave, self._steps, run)

    def _most_rows(self, most_tokens: int | None) -> int:
        """That can come of so many tokens of all ranks; 0: not known."""
        return min(self.layout.capacity, (most_tokens or 0) * self.parameters.rows_per_token)

    def _watched(self, experts: Callable[[ExpertRows], None]) -> Callable[[ExpertRows], None]:
        if torch.is_grad_enabled():
            experts = torch.no_grad()(experts)

        def watched_experts(rows: ExpertRows) -> None:
            try:
                experts(rows)
            except BaseException as error:
                self._steps.session.give_up(error, Step.EXPERTS, rows.ticket.epoch)
                raise

        return watched_experts

    def close(self) -> None:
        """Leaves the exchange; peers that still wait for this rank get `PeerLost`. Safe to call again."""
        if self._opened is not None:
            close_exchange(self._opened)
            self._opened = None
            self._dispatch_fitting = _nothing_fits

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is not None and self._opened is not None:
            session = self._steps.session
            session.give_up(value, session.step, session.epoch)
        self.close()

    @property
    def _steps(self) -> ExchangeSteps:
        if self._opened is None:
            raise SessionPoisoned("this exchange is closed; create a new Exchange")
        return self._opened.steps

    def _kind(self, phase: str) -> Kind:
        launches.refuse_capture("an exchange allocates what it returns: in a graph use Exchange.prepare in a launch")
        if problem := problem_with_phase(phase):
            self._steps.refuse(Kind.DECODE, problem)
        return _KINDS[phase]

    def _checked(self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor, kind: Kind) -> RoutedTokens:
        """The call's input as the kernels take it. What is wrong is told to every rank before it is raised here."""
        tokens = self._routed(x, topk_ids, topk_weights)
        if isinstance(tokens, str):
            self._steps.refuse(kind, tokens)
        return tokens

    def _routed(self, x: torch.Tensor, topk_ids: torch.Tensor, topk_weights: torch.Tensor) -> RoutedTokens | str:
        p = self.layout.parameters
        steps = self._steps
        return routed_tokens(
            x, topk_ids, topk_weights, hidden=p.hidden, topk=p.topk, dtype=steps.dtype, device=steps.device
        )

    def _problem_with_result(self, out: torch.Tensor | None, tokens: int) -> str | None:
        if out is None:
            return None
        steps = self._steps
        return problem_with_result(
            out, tokens=tokens, hidden=self.parameters.hidden, dtype=steps.dtype, device=steps.device
        )


def _run_or_leave(steps: ExchangeSteps, run: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
    """Runs a layer; an interrupt of it is told to the other ranks."""
    try:
        run(*arguments, **keywords)
    except KeyboardInterrupt:
        # It may have come between two steps, where nothing else notices that this rank does not go on.
        steps.session.leave_interrupted()
        raise


def _nothing_fits(_x: torch.Tensor, _ids: torch.Tensor, _weights: torch.Tensor, _phase: str, /) -> None:
    """`Slots.dispatch_fitting` of a closed exchange."""
