"""`ascend-moe doctor --url`: what the ranks of a running server say of their exchanges."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING

import msgspec

from sglang_ascend_moe.errors import InvalidInput, PeerLost, ProtocolMismatch, Unsupported
from sglang_ascend_moe.serving.http_client import answered

if TYPE_CHECKING:
    from sglang_ascend_moe.serving.worker.live_state import ExchangeState, RankState

TIMEOUT_S = 30.0
MIB = 2**20


def ask(url: str, api_key: str | None = None) -> list[RankState]:
    """The state of every rank that answers for itself or for others, by rank.

    Raises `InvalidInput` for what is no address, `PeerLost` if nobody answers there, `Unsupported` if the server runs
    without `--ascend-moe`, `ProtocolMismatch` if it runs another version of this package.
    """
    server = url.rstrip("/")
    try:
        with answered("GET", f"{server}/server_info", timeout=TIMEOUT_S, api_key=api_key) as answer:
            if not answer.ok:
                raise Unsupported(
                    f"--url {server}: the server answers {answer.status_code} {answer.reason} to /server_info"
                )
            said = json.loads(answer.content)
    except ValueError as error:
        raise InvalidInput(f"--url {server}: not an address of SGLang's server ({error})") from error
    except OSError as error:
        raise PeerLost(f"--url {server}: no server answers there ({error})") from error
    return states_in(said, server)


def states_in(said: object, server: str) -> list[RankState]:
    """The states in what `/server_info` of `server` says; raises as `ask`."""
    schedulers = said.get("internal_states") if isinstance(said, dict) else None
    if not isinstance(schedulers, list):
        raise InvalidInput(f"--url {server}: not an address of SGLang's server (it tells no internal states)")
    # Brings torch, which a server that does not answer is told without.
    from sglang_ascend_moe.serving.worker.live_state import STATE_KEY, RankState

    by_rank: dict[tuple[int, int], RankState] = {}
    for scheduler in schedulers:
        if STATE_KEY not in scheduler:
            raise Unsupported(f"--url {server}: this server runs without --ascend-moe")
        try:
            states = msgspec.convert(scheduler[STATE_KEY], list[RankState])
        except msgspec.ValidationError as error:
            raise ProtocolMismatch(
                f"--url {server}: the server runs another version of sglang-ascend-moe ({error}); ask with that one"
            ) from error
        by_rank.update({(state.stage, state.rank): state for state in states})
    return [by_rank[rank] for rank in sorted(by_rank)]


def text_of_states(states: list[RankState]) -> str:
    """The states for people."""
    first = states[0]
    options = ", ".join(f"{name} {value}" for name, value in msgspec.structs.asdict(first.options).items())
    of_stages = f" of each of {first.stages} pipeline stages" if first.stages > 1 else ""
    lines = [f"{first.ranks} ranks{of_stages}, {len(states)} of them heard", f"options: {options}"]
    for _, those in itertools.groupby(states, key=lambda state: state.stage):
        lines += _stage_lines(list(those))
    return "\n".join(lines)


def _stage_lines(states: list[RankState]) -> list[str]:
    """Of the ranks of one stage, which have the same exchanges."""
    first = states[0]
    lines = ["", f"stage {first.stage}"] if first.stages > 1 else []
    if not first.exchanges:
        lines.append("no exchange: the stage has no MoE layer")
    for number, exchange in enumerate(first.exchanges):
        lines += ["", *_exchange_lines(exchange)]
        lines += [line for state in states for line in _rank_lines(state.rank, state.exchanges[number])]
    graphs = [f"rank {state.rank} {state.graphs.state}, {state.graphs.replays} replays" for state in states]
    return [*lines, "", f"graphs: {'; '.join(graphs)}"]


def _exchange_lines(exchange: ExchangeState) -> list[str]:
    regions = ", ".join(f"{name} {size:,}" for name, size in exchange.regions.items())
    lines = [
        f"exchange of {exchange.num_experts} experts, top {exchange.topk}, rows of {exchange.hidden} {exchange.dtype},"
        f" at most {exchange.max_tokens} tokens per rank",
    ]
    if not exchange.regions:
        return [*lines, "  no windows: schedule collective"]
    return [
        *lines,
        f"  window of each rank: {exchange.window_bytes:,} bytes ({exchange.window_bytes / MIB:,.1f} MiB),"
        f" {exchange.capacity_rows:,} rows",
        f"  by region: {regions}",
        f"  rows of the last dispatch, by rank: {', '.join(map(str, exchange.rows_by_rank))}",
    ]


def _rank_lines(rank: int, exchange: ExchangeState) -> list[str]:
    epoch = f", epoch {exchange.epochs[rank]}" if exchange.epochs else ""
    lines = [f"  rank {rank}{epoch}"]
    for phase, counted in exchange.phases.items():
        lines.append(
            f"    {phase}: {counted.calls} calls, {counted.rounds} rounds, {counted.tokens} tokens brought,"
            f" {counted.rows} rows received, dispatch {counted.dispatch_s:.3f} s, combine {counted.combine_s:.3f} s"
        )
    waits = [f"rank {peer} {seconds:.3f} s" for peer, seconds in enumerate(exchange.waited_s) if peer != rank]
    return lines + ([f"    held up by {', '.join(waits)}"] if waits else [])
