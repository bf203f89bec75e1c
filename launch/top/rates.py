"""What each rank did between two looks at a running server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sglang_ascend_moe.serving.worker.live_state import ExchangeState, PhaseState, RankState


class Look(NamedTuple):
    """The states of all ranks that are heard, by stage and rank, and when they came (`time.monotonic`)."""

    states: Sequence[RankState]
    at_s: float


class RankRates(NamedTuple):
    """One rank, of all its exchanges together. Shares are of the time between the looks, from 0 to about 1.

    rows_s, tokens_s: per second, received and brought. dispatch, combine: shares spent in each half, waits included.
    held_up: [ranks] share for which each rank held this one up; empty where that is not known. imbalance: rows that
    this rank received over the mean of its stage; None: no rank received any. fill: rows of the last dispatch over what
    the window holds, of the fullest; None without windows. graphs: their kind, or none. replays_s: per second.
    """

    stage: int
    rank: int
    rows_s: float
    tokens_s: float
    dispatch: float
    combine: float
    held_up: list[float]
    imbalance: float | None
    fill: float | None
    graphs: str
    replays_s: float


def rates_between(before: Look, after: Look) -> list[RankRates]:
    """What each rank heard in both looks did; a server that was started anew in between has done nothing yet."""
    seconds = after.at_s - before.at_s
    earlier = {(state.stage, state.rank): state for state in before.states}
    known = [state for state in after.states if (state.stage, state.rank) in earlier]
    rates = [_rates_of(earlier[state.stage, state.rank], state, seconds) for state in known]
    return [one._replace(imbalance=_imbalance(one, rates)) for one in rates]


def _rates_of(before: RankState, after: RankState, seconds: float) -> RankRates:
    pairs = list(zip(before.exchanges, after.exchanges, strict=False))

    def share(field: str) -> float:
        return _change(before, after, field) / seconds

    waits = [
        [max(0.0, now - then) / seconds for then, now in zip(earlier.waited_s, later.waited_s, strict=True)]
        for earlier, later in pairs
    ]
    return RankRates(
        stage=after.stage,
        rank=after.rank,
        rows_s=share("rows"),
        tokens_s=share("tokens"),
        dispatch=share("dispatch_s"),
        combine=share("combine_s"),
        held_up=[sum(peer) for peer in zip(*waits, strict=False)],
        imbalance=None,
        fill=max((_fill(exchange, after.rank) for _, exchange in pairs if exchange.regions), default=None),
        graphs=after.graphs.state,
        replays_s=max(0, after.graphs.replays - before.graphs.replays) / seconds,
    )


def _change(before: RankState, after: RankState, field: str) -> float:
    total = sum(getattr(phase, field) for phase in _phases(after)) - sum(
        getattr(phase, field) for phase in _phases(before)
    )
    return max(0.0, total)


def _phases(state: RankState) -> list[PhaseState]:
    return [phase for exchange in state.exchanges for phase in exchange.phases.values()]


def _fill(exchange: ExchangeState, rank: int) -> float:
    return exchange.rows_by_rank[rank] / exchange.capacity_rows


def _imbalance(one: RankRates, rates: list[RankRates]) -> float | None:
    stage = [other.rows_s for other in rates if other.stage == one.stage]
    return one.rows_s * len(stage) / sum(stage) if sum(stage) else None


def straggler(rates: Sequence[RankRates], stage: int) -> tuple[int, float] | None:
    """The rank that held the others of its stage up most, and for which share of the time on average; None: unknown."""
    held_up = [(one.rank, one.held_up) for one in rates if one.stage == stage and one.held_up]
    shares = {
        peer: [waits[peer] for rank, waits in held_up if rank != peer]
        for peer in range(len(held_up[0][1]) if held_up else 0)
    }
    means = {peer: sum(waits) / len(waits) for peer, waits in shares.items() if waits}
    return max(means.items(), key=lambda item: item[1], default=None)
