"""What a running worker says of its exchanges: part of SGLang's `/server_info`, read by `ascend-moe doctor --url`."""

from typing import Any

import msgspec
import torch.distributed as dist

from sglang_ascend_moe.exchange import observation
from sglang_ascend_moe.exchange.expert_exchange import ExpertExchange
from sglang_ascend_moe.exchange.observation import PHASES, GraphCounts, Observation
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker import layer
from sglang_ascend_moe.serving.worker.stage_states import Publisher, published

STATE_KEY = "ascend_moe"
"""Key in SGLang's internal state, whose value is a list of `RankState`."""


class PhaseState(msgspec.Struct, frozen=True, kw_only=True):
    """One phase on one rank since start-up; see `observation.PhaseCounts`. Times are in seconds."""

    calls: int
    rounds: int
    tokens: int
    rows: int
    dispatch_s: float
    combine_s: float


class ExchangeState(msgspec.Struct, frozen=True, kw_only=True):
    """One exchange of one rank. The collective schedule has no window: no regions, no epochs, no known waits.

    window_bytes: of this rank, and by region. epochs: exchanges begun, by rank. rows_by_rank: rows that each rank
    received in the last dispatch. waited_s: seconds for which each rank has held this one up. phases: by name.
    """

    num_experts: int
    hidden: int
    topk: int
    dtype: str
    max_tokens: int
    window_bytes: int
    regions: dict[str, int]
    capacity_rows: int
    epochs: list[int]
    rows_by_rank: list[int]
    waited_s: list[float]
    phases: dict[str, PhaseState]


class RankState(msgspec.Struct, frozen=True, kw_only=True):
    """One rank of a running server. stage: of the pipeline, which has `stages`; each has exchanges of its own."""

    rank: int
    ranks: int
    stage: int = 0
    stages: int = 1
    options: Options
    exchanges: list[ExchangeState]
    graphs: GraphCounts


def report_state(answer: Any, scheduler: Any, *_: Any, **__: Any) -> None:
    """After `Scheduler.get_internal_state`: adds the state of the exchanges, of every rank where ranks answer together.

    SGLang lets one scheduler answer for many. It has just told all of them to, through the group used here; unless
    every group of data-parallel attention hears of requests by itself, in which case each answers for itself. Stages of
    a pipeline hear of it later than the first, which answers: theirs are what they published last.
    """
    serving = layer.serving()
    if serving is None:
        return
    if serving.stage:
        return
    states = [state_of(serving)]
    if not scheduler.server_args.enable_dp_attention_local_control_broadcast:
        from sglang.srt.runtime_context import get_parallel

        states = _gather(states[0], get_parallel().tp_group.cpu_group)
    if serving.stages > 1:
        states += [msgspec.msgpack.decode(state, type=RankState) for state in published(first=serving.ranks)]
    answer.internal_state[STATE_KEY] = msgspec.to_builtins(states)


_publisher: Publisher | None = None


def publish_from_now_on(*_: Any, **__: Any) -> None:
    """Before `dispatch_event_loop`: from here on a rank of a later pipeline stage says how it is."""
    global _publisher
    serving = layer.serving()
    if serving is not None and serving.stage:
        _publisher = Publisher(lambda: msgspec.msgpack.encode(state_of(serving)))


def publish_after_batch(_result: None, _scheduler: Any, *_: Any, **__: Any) -> None:
    """After `Scheduler.process_batch_result`."""
    if _publisher is not None:
        _publisher.after_batch()


def publish_when_idle(_scheduler: Any) -> None:
    """Before `Scheduler.on_idle`."""
    if _publisher is not None:
        _publisher.when_idle()


def _gather(own: RankState, group: dist.ProcessGroup) -> list[RankState]:
    """The states of all ranks of `group`, by rank."""
    encoded: list[bytes] = [b""] * dist.get_world_size(group)
    dist.all_gather_object(encoded, msgspec.msgpack.encode(own), group=group)
    return [msgspec.msgpack.decode(state, type=RankState) for state in encoded]


def state_of(serving: layer.Serving) -> RankState:
    """The state of this process."""
    return RankState(
        rank=serving.rank,
        ranks=serving.ranks,
        stage=serving.stage,
        stages=serving.stages,
        options=serving.options,
        exchanges=[_exchange_state(exchange) for exchange in serving.exchanges.values()],
        graphs=observation.graphs,
    )


def _exchange_state(exchange: ExpertExchange) -> ExchangeState:
    parameters, window = exchange.parameters, exchange.window
    return ExchangeState(
        num_experts=parameters.num_experts,
        hidden=parameters.hidden,
        topk=parameters.topk,
        dtype=parameters.dtype,
        max_tokens=parameters.max_tokens,
        window_bytes=window.total,
        regions=window.by_region(),
        capacity_rows=window.capacity_rows,
        epochs=exchange.epochs,
        rows_by_rank=exchange.rows_by_rank,
        waited_s=exchange.waited_s,
        phases=_phase_states(exchange.observation),
    )


def _phase_states(counted: Observation) -> dict[str, PhaseState]:
    return {
        PHASES[kind]: PhaseState(
            calls=counts.calls,
            rounds=counts.rounds,
            tokens=counts.tokens,
            rows=counts.rows,
            dispatch_s=counts.dispatch_ns / 1e9,
            combine_s=counts.combine_ns / 1e9,
        )
        for kind, counts in counted.phases.items()
    }
