"""Requests that come, wait, are read and written by servers: a discrete-event simulation of a deployment.

Servers are as SGLang's scheduler has them: prompts before tokens, in chunks, one batch at a time; all attention groups
of a server step together.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Generator, Sequence
from heapq import heappop, heappush
from itertools import count
from math import ceil
from statistics import median
from typing import Any, NamedTuple, Protocol

import simpy

CLOSE = 1e-9
"""Sums of tokens and of times that are nearer than this are equal."""
MOST_STEPS_AT_ONCE = 16
"""After so many decode steps of the same requests the time of a step is computed anew."""
SLICE = 2e-3
"""Seconds of work after which servers that share cores look who else works."""


STEADY = (0.4, 0.6)
"""The part of the requests that sees servers as full as they stay, if 2.5 times as many come as are under way: one
time fills them, half a time is looked at, and one time comes while these are answered."""


class Steps(Protocol):
    """Seconds of the steps of one server."""

    def prefill_seconds(self, tokens: int, prompts: int, context: float) -> float: ...

    def decode_seconds(self, requests: int, context: float) -> float: ...


class Workload(NamedTuple):
    """Requests, each of `input_tokens` and `output_tokens`. rate: per second, by a Poisson process, of which, if
    `span` is known, the first comes at once and the last after so many seconds; None: a request comes whenever fewer
    than `concurrency` are under way.
    """

    requests: int
    input_tokens: int
    output_tokens: int
    rate: float | None = None
    concurrency: int | None = None
    span: float | None = None


class ServerLimits(NamedTuple):
    """chunk: most tokens of a prefill step of all groups together. running: most requests under way. tokens: whose keys
    and values fit, of all groups together. per_step: tokens that a decode step gives a request, more than one with
    drafts."""

    chunk: int
    running: int
    tokens: int
    per_step: float = 1.0


class SimulatedRole(NamedTuple):
    """`instances` servers that are alike."""

    instances: int
    steps: Steps
    limits: ServerLimits


class Latencies(NamedTuple):
    """Seconds, by request. ttft: until the first token; tpot: between later tokens, mean of each. elapsed: until
    the last token of all. In the order in which requests came."""

    ttft: list[float]
    tpot: list[float]
    elapsed: float
    output_tokens: int

    def steady(self) -> Latencies:
        """Of the requests that came after the servers had filled and before the last ones left them."""
        begin, end = (round(part * len(self.ttft)) for part in STEADY)
        return self._replace(ttft=self.ttft[begin:end], tpot=self.tpot[begin:end])

    @property
    def output_rate(self) -> float:
        """Tokens per second."""
        return self.output_tokens / self.elapsed

    def at(self, part: float) -> tuple[float, float]:
        """The quantile `part` of TTFT and of TPOT."""
        return quantile(self.ttft, part), quantile(self.tpot, part)

    @property
    def median(self) -> tuple[float, float]:
        return median(self.ttft), median(self.tpot)


def quantile(values: Sequence[float], part: float) -> float:
    """The least value that at least `part` of `values` do not exceed."""
    return sorted(values)[max(0, ceil(part * len(values)) - 1)]


class _Request:
    __slots__ = ("came", "done", "first", "read")

    def __init__(self, came: float, done: simpy.Event) -> None:
        self.came = came
        self.done = done
        self.read = 0
        self.first = 0.0


class _Server:
    """One server: `waiting` for their prompt to be read, `running` while tokens are written.

    writes: None for a prefill server, which hands what it has read to `hand_over`.
    """

    def __init__(self, queues: _Queues, role: SimulatedRole, *, reads: bool, writes: bool) -> None:
        self._queues = queues
        self._steps, self._limits = role.steps, role.limits
        self._reads, self._writes = reads, writes
        self.waiting: deque[_Request] = deque()
        # By the tokens that the server will have given to each when a request ends; the sum of these; given so far.
        self.running: list[tuple[float, int, _Request]] = []
        self._ends = self._given = 0.0
        self._numbers = count()
        self._woken = queues.clock.event()
        queues.clock.process(self._work())

    @property
    def load(self) -> int:
        return len(self.waiting) + len(self.running)

    def take(self, request: _Request) -> None:
        self.waiting.append(request)
        if not self._woken.triggered:
            self._woken.succeed()

    def _room(self) -> int:
        most = self._limits.tokens // (self._queues.load.input_tokens + self._queues.load.output_tokens)
        return min(self._limits.running, most) - len(self.running)

    def _work(self) -> Generator[simpy.Event, Any, None]:
        while True:
            self._woken = self._queues.clock.event()
            if self.waiting and not self._reads and self._room() > 0:
                self._begin(self.waiting.popleft())
            elif self.waiting and self._reads and (self._room() > 0 or self.waiting[0].read):
                yield from self._prefill()
            elif self.running:
                yield from self._decode()
            else:
                yield self._woken

    def _prefill(self) -> Generator[simpy.Event, Any, None]:
        left, room, context = self._limits.chunk, self._room(), 0
        batch: list[tuple[_Request, int]] = []
        length = self._queues.load.input_tokens
        for request in self.waiting:
            if left <= 0 or len(batch) >= max(room, 1):
                break
            taken = min(left, length - request.read)
            batch.append((request, taken))
            context += request.read
            left -= taken
        tokens = self._limits.chunk - left
        yield from self._queues.work(self._steps.prefill_seconds(tokens, len(batch), context / len(batch)))
        for request, taken in batch:
            request.read += taken
            if request.read == length:
                self.waiting.remove(request)
                if self._writes:
                    self._begin(request)
                else:
                    self._queues.hand_over(request)

    def _begin(self, request: _Request) -> None:
        """The first token is there."""
        request.first = self._queues.clock.now
        left = self._queues.load.output_tokens - 1
        if left:
            heappush(self.running, (self._given + left, next(self._numbers), request))
            self._ends += self._given + left
        else:
            self._queues.end(request)

    def _decode(self) -> Generator[simpy.Event, Any, None]:
        load, per_step = self._queues.load, self._limits.per_step
        written = load.output_tokens - (self._ends / len(self.running) - self._given)
        step = self._steps.decode_seconds(len(self.running), load.input_tokens + written)
        steps = min(MOST_STEPS_AT_ONCE, max(1, ceil((self.running[0][0] - self._given - CLOSE) / per_step)))
        clock = self._queues.clock
        if self._queues.shared:
            steps = 1
            yield from self._queues.work(step)
        elif steps > 1 and self._room() > 0:
            began = clock.now
            yield clock.timeout(steps * step) | self._woken
            # Who comes in the middle of a step waits for its end.
            steps = max(1, min(steps, ceil((clock.now - began) / step - CLOSE)))
            yield clock.timeout(max(0.0, began + steps * step - clock.now))
        else:
            yield clock.timeout(steps * step)
        self._given += steps * per_step
        while self.running and self.running[0][0] <= self._given + CLOSE:
            end, _, request = heappop(self.running)
            self._ends -= end
            self._queues.end(request)


class _Queues:
    """A deployment at work."""

    def __init__(
        self, load: Workload, roles: Sequence[SimulatedRole], transfer: float, arrival: float, gap: float, shared: bool
    ) -> None:
        self.load, self.shared = load, shared
        self._gap, self._free = gap, 0.0
        self._working = 0
        self.clock = simpy.Environment()
        self.asked: list[_Request] = []
        self._transfer, self._arrival = transfer, arrival
        first, *rest = roles
        self._first = [_Server(self, first, reads=True, writes=not rest) for _ in range(first.instances)]
        self._second = [_Server(self, role, reads=False, writes=True) for role in rest for _ in range(role.instances)]
        self.times: dict[_Request, float] = {}

    def work(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """So many of a server that works alone; longer where others work at the same time on the same cores."""
        if not self.shared:
            yield self.clock.timeout(seconds)
            return
        self._working += 1
        while seconds > 0:
            part = min(seconds, SLICE)
            yield self.clock.timeout(part * self._working)
            seconds -= part
        self._working -= 1

    def ask(self) -> _Request:
        request = _Request(self.clock.now, self.clock.event())
        self.asked.append(request)
        self._free = max(self._free, self.clock.now) + self._gap
        self.clock.process(self._deliver(self._first, request, self._free - self.clock.now + self._arrival))
        return request

    def hand_over(self, request: _Request) -> None:
        self.clock.process(self._deliver(self._second, request, self._transfer))

    def _deliver(self, servers: list[_Server], request: _Request, seconds: float) -> Generator[simpy.Event, Any, None]:
        """To the server with the fewest requests, after so many seconds."""
        yield self.clock.timeout(seconds)
        min(servers, key=lambda server: server.load).take(request)

    def end(self, request: _Request) -> None:
        self.times[request] = self.clock.now
        request.done.succeed()

    def arrive(self, drawn: random.Random) -> Generator[simpy.Event, Any, None]:
        """Requests by their rate; where their span is known, the first one at its begin."""
        gaps = [drawn.expovariate(self.load.rate or 1.0) for _ in range(self.load.requests)]
        if self.load.span is not None:
            gaps[0] = 0.0
            longer = self.load.span / (sum(gaps) or 1.0)
            gaps = [gap * longer for gap in gaps]
        for gap in gaps:
            yield self.clock.timeout(gap)
            self.ask()

    def client(self, requests: int) -> Generator[simpy.Event, Any, None]:
        """One of those that ask again when they have their answer."""
        for _ in range(requests):
            yield self.ask().done


def simulate(
    load: Workload,
    roles: Sequence[SimulatedRole],
    transfer: float = 0.0,
    arrival: float = 0.0,
    seed: int = 0,
    *,
    gap: float = 0.0,
    shared: bool = False,
) -> Latencies:
    """Let `load` come until its last request is answered.

    roles: one that reads and writes, or one that reads and one that writes. transfer: seconds for the keys and values
    of a request between these. arrival: seconds before a request is in a server's queue. gap: seconds between requests
    that come at once, which are taken one after the other. shared: whether all servers are on the same cores. The same
    seed gives the same numbers. A server with no room for one request gives endless latencies.
    """
    length = load.input_tokens + load.output_tokens
    if any(min(role.limits.running, role.limits.tokens // length) < 1 for role in roles):
        return Latencies([float("inf")], [float("inf")], float("inf"), 0)
    queues = _Queues(load, roles, transfer, arrival, gap, shared)
    if load.rate is not None:
        queues.clock.process(queues.arrive(random.Random(seed)))
    else:
        clients = load.concurrency or 1
        for client in range(clients):
            queues.clock.process(queues.client(len(range(client, load.requests, clients))))
    queues.clock.run()
    ttft = [request.first - request.came for request in queues.asked]
    later = max(1, load.output_tokens - 1)
    tpot = [(queues.times[request] - request.first) / later for request in queues.asked]
    return Latencies(ttft, tpot, max(queues.times.values()), load.requests * load.output_tokens)
