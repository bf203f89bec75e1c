"""What a kernel found wrong, as the exception that says so to a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from sglang_ascend_moe.errors import (
    AscendMoeError,
    Corruption,
    InvalidInput,
    PeerLost,
    PeerTimeout,
    ProtocolMismatch,
    SessionPoisoned,
    WindowTooSmall,
    rank_in_words,
)
from sglang_ascend_moe.native.codes import InputError, Kind, Region, Result, Step
from sglang_ascend_moe.windows.layout import WindowLayout, bytes_for_capacity

RUNTIME_REFUSED = 255
"""The cause of a `PEER_FAILED` of this rank, if the runtime of its device refused a call."""


class Fault(NamedTuple):
    """Why a call ended without its result, as rank `rank` saw it at `step` of `epoch`.

    culprit: the rank to blame; missing: the ranks for which a failed wait still waited.
    cause: an `InputError`, the other rank's `Kind`, or the `Result` that poisoned the session, as `result` has it.
    detail: the offending value, the rows needed, or the row whose checksum differs.
    region: where it lies, of a corruption; the culprit is then the rank whose word or row it is.
    refusal: with `InputError.ARGUMENT`, those of the culprit; with the cause `RUNTIME_REFUSED`, what its device said.
    """

    result: Result
    rank: int
    culprit: int
    step: Step
    epoch: int
    cause: int
    detail: int
    region: Region
    missing: tuple[int, ...]
    refusal: str


def fault_error(fault: Fault, layout: WindowLayout, nodes: Sequence[int] = ()) -> AscendMoeError:
    """The exception for `fault`; its message names rank, value and remedy, with several `nodes` [ranks] the node."""
    p = layout.parameters
    step, result = fault.step.name.lower(), fault.result
    where = f"at step {step} of epoch {fault.epoch}"
    culprit = f"this rank ({fault.rank})" if fault.culprit == fault.rank else rank_in_words(fault.culprit, nodes)
    blame = (fault.culprit, step, fault.epoch)
    if result == Result.INVALID_INPUT:
        problem = input_problem(fault.cause, fault.detail, num_experts=p.num_experts, max_tokens=p.max_tokens)
        return InvalidInput(f"{culprit}: {problem or fault.refusal}")
    if result == Result.WINDOW_TOO_SMALL:
        return WindowTooSmall(
            f"{fault.detail} rows for rank {fault.culprit} do not fit its window of {layout.capacity} rows in one "
            f"round; set window_bytes to {bytes_for_capacity(p, fault.detail)} or more, or use run(phase='prefill'), "
            f"which takes several rounds"
        )
    if result == Result.MISMATCH:
        ours, theirs = _kind_name(fault.detail), _kind_name(fault.cause)
        return ProtocolMismatch(
            f"rank {fault.culprit} began a {theirs} exchange while this rank ({fault.rank}) began a {ours} exchange "
            f"({where}); every rank must make the same calls in the same order"
        )
    if result == Result.PEER_LOST:
        return PeerLost(f"{culprit} has died; noticed {where}", *blame)
    if result == Result.PEER_FAILED and fault.cause == RUNTIME_REFUSED:
        return PeerLost(f"{culprit} failed {where} on its device: {fault.refusal}", *blame)
    if result == Result.PEER_FAILED:
        return PeerLost(f"{culprit} failed {where} and gave up", *blame)
    if result == Result.PEER_CLOSED:
        return PeerLost(f"{culprit} closed the exchange; noticed {where}", *blame)
    if result == Result.PEER_TIMEOUT:
        return PeerTimeout(
            f"{culprit} did not answer within {p.timeout_s} s {where} (waiting for ranks "
            f"{list(fault.missing) or [fault.culprit]}); if it is only slow, raise timeout_s (--ascend-moe-timeout)",
            *blame,
        )
    if result == Result.CORRUPTION:
        value, region = fault.detail & 2**64 - 1, fault.region.name.lower()
        if fault.region in (Region.ROWS, Region.OUT):
            return Corruption(
                f"row {value} from {culprit} is not what was written: its checksum differs {where}",
                region, fault.culprit, value,
            )  # fmt: skip
        return Corruption(
            f"{value:#x} in the {region} of {culprit} cannot have been written by it; found {where}",
            region, fault.culprit, value,
        )  # fmt: skip
    return SessionPoisoned(
        f"this exchange failed before ({Result(fault.cause).name.lower().replace('_', ' ')}, {culprit}); its memory is "
        f"not safe to use, create a new Exchange"
    )


def refuse_forked(*_: object) -> NoReturn:
    """In place of any call in a process that was forked from the one that opened the exchange."""
    raise SessionPoisoned(
        "this exchange was opened by the process that this one was forked from, and does not survive a fork; open an "
        "exchange in this process"
    )


def input_problem(error: int, value: int, *, num_experts: int, max_tokens: int) -> str | None:
    """What is wrong with `value`, a number of tokens or an expert's id; None for an `InputError` of another kind."""
    if error == InputError.TOKENS:
        return f"{value} tokens exceed max_tokens={max_tokens}; raise max_tokens (--ascend-moe-max-tokens)"
    if error == InputError.EXPERT_ID:
        return f"expert id {value} is outside -1 .. {num_experts - 1} (num_experts={num_experts})"
    if error == InputError.REPEATED_EXPERT:
        return f"expert id {value} is repeated within a token although distinct_topk=True; set distinct_topk=False"
    return None


def _kind_name(value: int) -> str:
    return Kind(value).name.lower() if value in Kind.__members__.values() else f"unknown ({value})"
