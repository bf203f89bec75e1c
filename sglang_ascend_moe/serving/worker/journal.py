"""What each rank of a server has begun and sampled, in memory that all ranks of a node map.

Ranks that share their attention compute the same logits and sample from them each for itself; nothing in SGLang notices
when one of them gets another token. Here each rank writes down its events in order: the batch that it begins, the
tokens that it sampled. An event carries a checksum of all events up to it, so that one look at a peer compares
everything so far. Nobody waits for anybody: who comes second sees the difference.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from array import array
from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import NamedTuple

import psutil

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.serving.worker.journal_courier import Courier

EVENTS = 32
"""Latest events of a rank that can be read; SGLang's collectives let no rank get so far ahead of another."""

_LINE = 64
# Process, state.
_STATUS = struct.Struct("<QQ")
# The fields of `Event`, then a checksum: a peer may read while the owner writes.
_EVENT = struct.Struct("<QQ6I")
_CHECK = struct.Struct("<I")
_WHOLE = _EVENT.size + _CHECK.size
_TOKEN_BYTES = 8


class Kind(IntEnum):
    """What an event is about."""

    BEGUN = 0
    SAMPLED = 1


class State(IntEnum):
    """How a rank is. TIMED_OUT: it waited for others as long as it may. GAVE_UP: it lost others before. FAILED: it
    failed by itself."""

    SERVING = 0
    GAVE_UP = 1
    FAILED = 2
    TIMED_OUT = 3


class Status(NamedTuple):
    """A rank's process, and how the rank is."""

    process: int
    state: State


class Event(NamedTuple):
    """One event of a rank.

    number: counts the events of the rank, from 1. step: counts those of its kind. phase: SGLang's forward mode.
    requests, tokens: how many requests the batch has, and how many tokens went in, or were sampled. content: checksum
    of the names of the requests, or of the tokens sampled. history: checksum of all events up to this one.
    """

    number: int
    step: int
    kind: int
    phase: int
    requests: int
    tokens: int
    content: int
    history: int


class Difference(NamedTuple):
    """The first event in which ranks differ: by rank, the event, and as many of its tokens as were kept."""

    events: dict[int, Event]
    tokens: dict[int, list[int]]


class JournalMemory:
    """Memory without a name, made by one rank of a node and mapped by all of it."""

    def __init__(self, descriptor: int, ranks: int, tokens: int) -> None:
        """tokens: how many sampled tokens of an event are kept. The descriptor stays the caller's."""
        self.ranks = ranks
        self.tokens = tokens
        self._event_bytes = _aligned(_WHOLE + tokens * _TOKEN_BYTES)
        self._rank_bytes = _LINE + EVENTS * self._event_bytes
        if os.fstat(descriptor).st_size < ranks * self._rank_bytes:
            os.ftruncate(descriptor, ranks * self._rank_bytes)
        self.map = mmap.mmap(descriptor, ranks * self._rank_bytes)

    def start(self, rank: int) -> int:
        """The offset of what belongs to a rank; its status lies there."""
        return rank * self._rank_bytes

    def write(self, rank: int, offset: int, data: bytes) -> None:
        """What a rank of another node has written into its part. Raises `ProtocolMismatch` if it is beyond that."""
        if offset + len(data) > self._rank_bytes:
            raise ProtocolMismatch(
                f"rank {rank} wrote {len(data)} bytes at {offset} of its {self._rank_bytes} of a journal"
            )
        at = self.start(rank) + offset
        self.map[at : at + len(data)] = data

    def event_place(self, number: int) -> int:
        """The offset of an event within that."""
        return _LINE + number % EVENTS * self._event_bytes


def _aligned(size: int) -> int:
    return -(-size // _LINE) * _LINE


class Journal:
    """The events of one rank, and those of its peers as far as they have come."""

    def __init__(
        self, memory: JournalMemory, rank: int, peers: Collection[int], courier: Courier | None = None
    ) -> None:
        """peers: the other ranks that have to do the same as this one. courier: to other nodes, if there are any."""
        self.rank = rank
        self._courier = courier
        self._memory = memory
        self._map = memory.map
        self._own = memory.start(rank)
        self._peers = sorted(peers)
        self._starts = [memory.start(peer) for peer in self._peers]
        self._steps = [0] * len(Kind)
        self._number = 0
        self._history = 0
        # Of the latest event: as it is written, and where.
        self._latest = bytes(_WHOLE)
        self._place = memory.event_place(0)
        self.mark(State.SERVING)

    @property
    def step(self) -> int:
        """Batches that this rank has begun."""
        return self._steps[Kind.BEGUN]

    def begin(self, phase: int, requests: Sequence[str], tokens: int) -> None:
        """This rank begins a batch of the named requests."""
        names = zlib.crc32("\0".join(requests).encode())
        self._write(Kind.BEGUN, phase, len(requests), tokens, names)

    def sample(self, phase: int, requests: int, tokens: bytes) -> None:
        """This rank has the results of a batch; tokens: sampled ids, 8 bytes each."""
        count = len(tokens) // _TOKEN_BYTES
        self._write(
            Kind.SAMPLED, phase, requests, count, zlib.crc32(tokens), tokens[: self._memory.tokens * _TOKEN_BYTES]
        )

    def _write(self, kind: int, phase: int, requests: int, tokens: int, content: int, kept: bytes = b"") -> None:
        self._number += 1
        self._steps[kind] += 1
        fields = (self._number, self._steps[kind], kind, phase, requests, tokens, content)
        self._history = zlib.crc32(_EVENT.pack(*fields, self._history))
        event = _EVENT.pack(*fields, self._history)
        self._latest = event + _CHECK.pack(zlib.crc32(event))
        self._place = self._memory.event_place(self._number)
        # The tokens first: they are read only of an event that is whole.
        if kept:
            self._put(self._place + _WHOLE, kept)
        self._put(self._place, self._latest)

    def _put(self, offset: int, data: bytes) -> None:
        """Write into the part of this rank, on all nodes."""
        at = self._own + offset
        self._map[at : at + len(data)] = data
        if self._courier is not None:
            self._courier.send(offset, data)

    def _take(self) -> None:
        """Let what has come from other nodes be seen."""
        if self._courier is not None:
            self._courier.take(self._memory.write)

    def agrees(self) -> bool:
        """Whether every peer that has come as far as this rank did the same; of the others nothing is known yet."""
        self._take()
        latest, place = self._latest, self._place
        for start in self._starts:
            at = start + place
            event = self._map[at : at + _WHOLE]
            if event != latest and _whole(event, self._number) is not None:
                return False
        return True

    def difference(self) -> Difference | None:
        """The first event, of those that can still be read, in which a peer differs; None if there is none."""
        self._take()
        for number in range(max(1, self._number - EVENTS + 1), self._number + 1):
            events = {rank: self._read(rank, number) for rank in sorted([self.rank, *self._peers])}
            found = {rank: event for rank, event in events.items() if event is not None}
            if len({event.history for event in found.values()}) > 1:
                return Difference(found, {rank: self._tokens(rank, event) for rank, event in found.items()})
        return None

    def _read(self, rank: int, number: int) -> Event | None:
        """An event of a rank; None if it is not there, any more or yet."""
        at = self._memory.start(rank) + self._memory.event_place(number)
        return _whole(self._map[at : at + _WHOLE], number)

    def _tokens(self, rank: int, event: Event) -> list[int]:
        if event.kind != Kind.SAMPLED:
            return []
        begin = self._memory.start(rank) + self._memory.event_place(event.number) + _WHOLE
        kept = min(event.tokens, self._memory.tokens)
        return array("q", self._map[begin : begin + kept * _TOKEN_BYTES]).tolist()

    def mark(self, state: State) -> None:
        """How this rank is from now on."""
        self._put(0, _STATUS.pack(os.getpid(), state))

    def has_ended(self, rank: int, process: int) -> bool:
        """Whether a rank does not live any more."""
        far = None if self._courier is None else self._courier.has_ended(rank)
        return _process_has_ended(process) if far is None else far

    def statuses(self) -> dict[int, Status]:
        """How every rank is, by its own word: one that was killed still serves."""
        self._take()
        offsets = map(self._memory.start, range(self._memory.ranks))
        found = [_STATUS.unpack_from(self._map, offset) for offset in offsets]
        return {rank: Status(process, State(state)) for rank, (process, state) in enumerate(found)}


def _process_has_ended(process: int) -> bool:
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _whole(data: bytes, number: int) -> Event | None:
    """The event that `data` holds, if it is the one of this number and all of it is there."""
    event = Event(*_EVENT.unpack_from(data))
    if (
        event.number != number
        or number == 0
        or _CHECK.unpack_from(data, _EVENT.size)[0] != zlib.crc32(data[: _EVENT.size])
    ):
        return None
    return event


def describe(difference: Difference, phases: Mapping[int, str]) -> str:
    """The difference in words: step, ranks and their values. phases: names of SGLang's forward modes."""
    events = difference.events
    first = events[min(events)]

    def batch(event: Event) -> str:
        return f"{phases.get(event.phase, event.phase)} of {event.requests} requests"

    def did(event: Event) -> str:
        verb = "began" if event.kind == Kind.BEGUN else "sampled"
        return f"{verb} step {event.step} ({batch(event)}, {event.tokens} tokens)"

    shapes = {event._replace(content=0, history=0) for event in events.values()}
    if len(shapes) > 1:
        return by_value({rank: did(event) for rank, event in events.items()})
    at = f"in step {first.step} ({batch(first)})"
    if first.kind == Kind.BEGUN:
        return f"{at} the requests differ: {by_value({rank: f'{e.content:08x}' for rank, e in events.items()})}"
    # With drafts each request has several tokens.
    each = max(1, first.tokens // max(1, first.requests))
    for place, values in enumerate(zip(*difference.tokens.values(), strict=True)):
        if len(set(values)) > 1:
            sampled = dict(zip(difference.tokens, values, strict=True))
            named = by_value({rank: f"sampled token {token}" for rank, token in sampled.items()})
            return f"{at}, request {place // each} of the batch: {named}"
    return f"{at} the sampled tokens differ: {by_value({rank: f'{e.content:08x}' for rank, e in events.items()})}"


def by_value(values: dict[int, str]) -> str:
    """Ranks and what they say, those that stand alone first."""
    ranks: dict[str, list[int]] = {}
    for rank, value in values.items():
        ranks.setdefault(value, []).append(rank)
    said = sorted(ranks.items(), key=lambda item: (len(item[1]), item[1]))
    return ", ".join(f"{ranks_in_words(those)} {value}" for value, those in said)


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Such as `rank 1`, or `ranks 0, 2`."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
