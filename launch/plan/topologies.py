"""The deployments that so many NPUs allow, and how many requests each could answer at most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.plan.die_bytes import DieBytes, die_bytes, limits_of
from sglang_ascend_moe.launch.plan.machine_times import Machine, Schedule
from sglang_ascend_moe.launch.plan.model_work import ModelWork
from sglang_ascend_moe.launch.plan.request_queues import ServerLimits, SimulatedRole
from sglang_ascend_moe.launch.plan.step_time import Placement, StepTimes
from sglang_ascend_moe.serving.worker.sizing import Role

GROUP_CHUNKS = (4096, 8192, 16384)
"""Tokens of a prefill step that are tried, of one attention group."""
GROUP_RUNNING = (2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 96, 128)
"""Requests under way that are tried, of one attention group."""
ALIKE = 3
"""Topologies that are looked at of those that differ only in groups, chunks and requests."""


class Question(NamedTuple):
    """What is asked. memory: bytes of a rank. ttft, tpot: seconds. per_step: tokens that a decode step gives a request;
    drafts: tokens that it verifies besides. rate: requests per second to be answered; None: as many as possible.
    part: the quantile of the requests that has to keep the limits."""

    work: ModelWork
    machine: Machine
    npus: int
    memory: int
    input_tokens: int
    output_tokens: int
    ttft: float
    tpot: float
    weights: str = "bf16"
    drafts: int = 0
    per_step: float = 1.0
    rate: float | None = None
    part: float = 0.5


class ServerChoice(msgspec.Struct, frozen=True, kw_only=True):
    """`instances` servers that are alike, of `tp` ranks with `dp` attention groups. chunk, running: of each, as SGLang
    has them in flags."""

    instances: int
    tp: int
    dp: int
    chunk: int
    running: int

    @property
    def ranks(self) -> int:
        return self.instances * self.tp


class Topology(NamedTuple):
    """The servers that read, and those that write, None where the first do both. bound: requests per second, about,
    that they could answer if none ever waited. bytes: of a rank of each."""

    schedule: Schedule
    first: ServerChoice
    second: ServerChoice | None
    bound: float
    bytes: tuple[DieBytes, ...]


class _Candidate(NamedTuple):
    server: ServerChoice
    bound: float
    bytes: DieBytes


def steps_of(question: Question, schedule: Schedule, server: ServerChoice) -> StepTimes:
    place = Placement(server.tp, server.dp, question.weights, question.drafts)
    return StepTimes(question.work, question.machine, place, schedule)


def simulated(question: Question, topology: Topology) -> list[SimulatedRole]:
    """The topology as the simulation takes it."""
    servers = [topology.first] if topology.second is None else [topology.first, topology.second]
    return [
        SimulatedRole(
            server.instances,
            steps_of(question, topology.schedule, server),
            ServerLimits(server.chunk, server.running, one.tokens, question.per_step),
        )
        for server, one in zip(servers, topology.bytes, strict=True)
    ]


def topologies(question: Question, schedule: Schedule) -> list[Topology]:
    """What fits into memory: servers that read and write, then servers apart, those with the greatest bound first."""
    together = [
        Topology(schedule, replaced, None, found.bound * replaced.instances, (found.bytes,))
        for found in _servers(question, schedule, "null")
        if question.npus % found.server.tp == 0
        and (replaced := msgspec.structs.replace(found.server, instances=question.npus // found.server.tp))
    ]
    apart = []
    writers = list(_servers(question, schedule, "decode"))
    for reader in _servers(question, schedule, "prefill"):
        for writer in writers:
            for readers in range(1, question.npus // reader.server.tp + 1):
                left = question.npus - readers * reader.server.tp
                if left and left % writer.server.tp == 0:
                    number = left // writer.server.tp
                    apart.append(
                        Topology(
                            schedule,
                            msgspec.structs.replace(reader.server, instances=readers),
                            msgspec.structs.replace(writer.server, instances=number),
                            min(readers * reader.bound, number * writer.bound),
                            (reader.bytes, writer.bytes),
                        )
                    )
    return [one for kind in (together, apart) for one in _distinct(kind)]


def _distinct(found: list[Topology]) -> Iterator[Topology]:
    """Those with the greatest bound first, at most `ALIKE` of the same numbers of servers and ranks."""
    seen: Counter[tuple[int, ...]] = Counter()
    for one in sorted(found, key=lambda topology: -topology.bound):
        servers = [one.first] if one.second is None else [one.first, one.second]
        key = tuple(number for server in servers for number in (server.instances, server.tp))
        seen[key] += 1
        if seen[key] <= ALIKE:
            yield one


def divisions(work: ModelWork, npus: int) -> Iterator[tuple[int, int]]:
    """Ranks of a server, and attention groups, that the experts and the heads allow: powers of two of groups."""
    for tp in range(1, npus + 1):
        if work.experts % tp:
            continue
        for power in range(tp.bit_length()):
            dp = 2**power
            if tp % dp == 0 and work.heads % (tp // dp) == 0:
                yield tp, dp


def _servers(question: Question, schedule: Schedule, role: Role) -> list[_Candidate]:
    """Of each division that which answers most requests, with the smallest chunk, if one fits and keeps the limits."""
    found = []
    for tp, dp in divisions(question.work, question.npus):
        sized = [_candidate(question, schedule, role, server) for server in _sized(role, tp, dp)]
        fitting = [candidate for candidate in sized if candidate is not None]
        if fitting:
            found.append(max(fitting, key=lambda candidate: (candidate.bound, -candidate.server.chunk)))
    return found


def _sized(role: Role, tp: int, dp: int) -> Iterator[ServerChoice]:
    chunks = GROUP_CHUNKS[:1] if role == "decode" else GROUP_CHUNKS
    running = (GROUP_RUNNING[-3],) if role == "prefill" else GROUP_RUNNING
    for chunk in chunks:
        for requests in running:
            yield ServerChoice(instances=1, tp=tp, dp=dp, chunk=chunk * dp, running=requests * dp)


def _candidate(question: Question, schedule: Schedule, role: Role, server: ServerChoice) -> _Candidate | None:
    """None for a server that cannot be, or whose every request misses a limit."""
    place = Placement(server.tp, server.dp, question.weights, question.drafts)
    limits = limits_of(role, place, server.chunk, server.running)
    try:
        found = die_bytes(question.work, question.machine, place, schedule, limits, question.memory)
    except AscendMoeError:
        # A window that cannot be: other sizes are tried.
        return None
    length = question.input_tokens + question.output_tokens
    under_way = min(server.running, found.tokens // length)
    if under_way < 1:
        return None
    steps = steps_of(question, schedule, server)
    reading = writing = step = 0.0
    if role != "decode":
        piece = min(question.input_tokens, server.chunk)
        alone = steps.prefill_seconds(piece, 1, 0.0) * question.input_tokens / piece
        if alone > question.ttft:
            return None
        prompts = max(1, server.chunk // question.input_tokens)
        tokens = min(server.chunk, prompts * question.input_tokens)
        reading = steps.prefill_seconds(tokens, prompts, 0.0) * question.input_tokens / tokens
        if role == "null":
            # Who writes cannot wait until prompts fill a batch.
            reading = alone
    if role != "prefill":
        context = question.input_tokens + question.output_tokens / 2
        step = steps.decode_seconds(under_way, context)
        if step / question.per_step > question.tpot:
            return None
        writing = step * (question.output_tokens - 1) / (question.per_step * under_way)
    bound = 1 / (reading + writing)
    if role == "null":
        # Prompts interrupt who writes, and may take no more than what the limit leaves.
        bound = min(bound, (1 - step / (question.per_step * question.tpot)) / reading)
    return _Candidate(server, bound, found)
