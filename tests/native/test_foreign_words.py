"""Whatever stands in a window where another rank's words should be: the call ends well, or with an error of the package
that names that rank. One rank calls here; what the other one would have written is drawn.
"""

from __future__ import annotations

import ctypes
import struct
from typing import NamedTuple

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_ascend_moe.errors import AscendMoeError, Corruption, InvalidInput, PeerFault, SessionPoisoned
from sglang_ascend_moe.native.codes import InputError, Kind, Part, Result, Step
from sglang_ascend_moe.native.session import NativeSession, initialise_window
from sglang_ascend_moe.windows.layout import (
    COUNTS_PER_UNIT,
    UNIT_BYTES,
    ExchangeParameters,
    WindowLayout,
    plan_window,
)

PARAMETERS = ExchangeParameters(ranks=2, num_experts=4, hidden=16, max_tokens=3, topk=2, timeout_s=0.003)
LAYOUT = plan_window(PARAMETERS)
GRANTING = plan_window(msgspec.structs.replace(PARAMETERS, counts="grants"))
MAX_TOKENS, TOPK = LAYOUT.parameters.max_tokens, LAYOUT.parameters.topk
TOKENS = torch.zeros(1, LAYOUT.parameters.hidden, dtype=torch.bfloat16), torch.tensor([[0, 3]]), torch.ones(1, TOPK)
OTHER = 1
EPOCH = 1
EDGES = [0, 1, 2, 3, 4, 5, 255, 256, 257, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]
EDGES_64 = [*EDGES, 2**32, 2**48 - 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]

words_32 = st.sampled_from(EDGES) | st.integers(0, 2**32 - 1)
words_64 = st.sampled_from(EDGES_64) | st.integers(0, 2**64 - 1)
kinds = st.sampled_from([0, 1, 2, 3, 4, 2**16 - 1])
sequence_words = st.builds(lambda epoch, kind: epoch << 16 | kind, st.integers(0, 3), kinds) | words_64
thorough = settings(max_examples=300, deadline=None, derandomize=True, database=None)


class Header(NamedTuple):
    """The payload of a header unit."""

    tokens: int
    error: int
    detail: int
    block_bytes: int
    block_check: int


class Windows:
    """Two windows in this process, and the session of rank 0 over them; rank 1 is whoever writes into the first."""

    def __init__(self, layout: WindowLayout = LAYOUT) -> None:
        self._layout = layout
        self._memory = [ctypes.create_string_buffer(layout.total_bytes + 64) for _ in range(2)]
        self._bases = [-(-ctypes.addressof(memory) // 64) * 64 for memory in self._memory]
        for base in self._bases:
            initialise_window(layout, base)
        self.session = NativeSession(layout, 0, self._bases, [-1, -1])

    def write(self, offset: int, data: bytes) -> None:
        ctypes.memmove(self._bases[0] + offset, data, len(data))

    def write_record(self, units: list[bytes]) -> None:
        record = (EPOCH % 2 * 2 + OTHER) * (1 + self._layout.count_units) * UNIT_BYTES
        self.write(self._layout.offsets.records + record, b"".join(units))

    def write_grant(self, units: list[bytes]) -> None:
        record = OTHER * (1 + self._layout.count_units) * UNIT_BYTES
        self.write(self._layout.offsets.grants + record, b"".join(units))

    def write_mailbox(self, block: bytes) -> None:
        self.write(LAYOUT.offsets.mailboxes + (EPOCH % 2 * 2 + OTHER) * LAYOUT.mailbox_bytes, block)

    def write_line(self, region: int, word: int) -> None:
        self.write(region + OTHER * 64, word.to_bytes(8, "little"))

    def dispatch(self) -> None:
        call = self.session.new_call(MAX_TOKENS)
        call.take(*TOKENS, Kind.DECODE, Part.WHOLE)
        self.session.dispatch(call)

    def plan(self) -> list[bytes]:
        return self.session.plan(b"mine", 1, InputError.OK, 0)


def header_unit(word: int, header: Header) -> bytes:
    return struct.pack("<QIIQII", word, *header)


def count_unit(word: int, counts: list[int]) -> bytes:
    return struct.pack(f"<Q{COUNTS_PER_UNIT}I", word, *counts)


def require_named(error: AscendMoeError, *regions: str) -> None:
    """The other rank is named; what is corrupt lies where something was drawn."""
    if isinstance(error, Corruption):
        assert (error.region in regions, error.rank) == (True, OTHER), error
        assert error.value is not None
        assert f"rank {OTHER}" in str(error)
    elif isinstance(error, PeerFault):
        assert error.rank == OTHER, error


@thorough
@given(word=words_64 | st.builds(lambda result, rest: result << 56 | rest, st.integers(0, 12), st.integers(0, 2**42)))
def test_a_status_word_is_believed_only_if_a_rank_can_have_written_it(word):
    windows = Windows()
    windows.write_line(LAYOUT.offsets.status, word)
    result, culprit, step = word >> 56, word >> 40 & 0xFFFF, word >> 32 & 0xFF
    told = {Result.PEER_LOST, Result.PEER_TIMEOUT, Result.PEER_FAILED, Result.PEER_CLOSED}
    with pytest.raises(AscendMoeError) as caught:
        windows.plan()
    if word == 0 or (result in told and culprit < 2 and step <= max(Step)):
        # As the word says; nobody else answers here.
        assert isinstance(caught.value, PeerFault | SessionPoisoned)
    else:
        assert isinstance(caught.value, Corruption)
        assert (caught.value.region, caught.value.rank, caught.value.value) == ("status", OTHER, word)


headers = st.builds(Header, words_32, words_32, words_64, words_32, words_32)
likely_headers = st.builds(
    Header, st.integers(0, MAX_TOKENS + 1), st.integers(0, 5), st.sampled_from([0, 1, 2, 3, 4, 5, 7, 2**64 - 1]),
    st.sampled_from([0, 0, 1, 7, 256]), st.just(0),
)  # fmt: skip


@thorough
@given(word=sequence_words, header=headers | likely_headers, text=st.binary(max_size=16))
def test_any_header_and_mailbox_of_a_plan_is_one_or_named(word, header, text):
    windows = Windows()
    windows.write_mailbox(text)
    windows.write_record([header_unit(word, header)])
    try:
        blocks = windows.plan()
    except AscendMoeError as error:
        require_named(error, "records", "mailboxes")
    else:
        assert (blocks[0], len(blocks[OTHER])) == (b"mine", header.block_bytes)


@thorough
@given(
    words=st.tuples(sequence_words, sequence_words, sequence_words),
    header=headers | likely_headers,
    counts=st.lists(words_32 | st.integers(0, 3), min_size=COUNTS_PER_UNIT, max_size=COUNTS_PER_UNIT),
)
def test_any_record_and_arrive_word_is_one_or_named(words, header, counts):
    windows = Windows()
    windows.write_record([header_unit(words[0], header), count_unit(words[1], counts)])
    windows.write_line(LAYOUT.offsets.arrive, words[2])
    try:
        windows.dispatch()
    except AscendMoeError as error:
        require_named(error, "records", "mailboxes", "arrive")
        if isinstance(error, InvalidInput):
            assert header.error in list(InputError)[1:]
    else:
        assert header.error == InputError.OK
        assert sum(counts[: LAYOUT.parameters.num_experts]) == header.detail <= header.tokens * TOPK


class Grant(NamedTuple):
    """What the other rank grants this one."""

    words: tuple[int, int]
    total: int
    begins: list[int]
    off: int
    """From the sum that the header should have."""


grants = st.builds(
    Grant,
    words=st.tuples(sequence_words, sequence_words),
    total=st.integers(0, 13) | words_64,
    begins=st.lists(st.integers(0, 13) | words_32, min_size=COUNTS_PER_UNIT, max_size=COUNTS_PER_UNIT),
    off=st.sampled_from([0, 0, 0, 1, 2**63]),
)


def dispatch_with(grant: Grant, layout: WindowLayout = GRANTING) -> None:
    """Of one token, whose second row goes to the second expert of the rank that grants this."""
    word = EPOCH << 16 | Kind.DECODE
    windows = Windows(layout)
    windows.write_record([header_unit(word, Header(3, 0, 2, 0, 0)), count_unit(word, [2, 0, 0, 0, 0, 0])])
    windows.write_line(layout.offsets.arrive, word)
    total = (grant.total + sum(grant.begins[: layout.counted_experts]) + grant.off) % 2**64
    header = struct.pack("<4Q", grant.words[0], grant.total, total, 0)
    windows.write_grant([header, count_unit(grant.words[1], grant.begins)])
    windows.dispatch()


def require_granted_or_named(grant: Grant, layout: WindowLayout = GRANTING) -> None:
    word, capacity = EPOCH << 16 | Kind.DECODE, layout.capacity
    try:
        dispatch_with(grant, layout)
    except AscendMoeError as error:
        require_named(error, "grants")
    else:
        wanted = ((word, word), 0, True, True)
        assert (grant.words, grant.off, grant.total <= capacity, grant.begins[1] < capacity) == wanted


@thorough
@given(grants)
def test_any_grant_is_one_or_named(grant):
    require_granted_or_named(grant)


@pytest.mark.parametrize("changed", range(COUNTS_PER_UNIT - 2))
def test_a_count_that_another_rank_did_not_send_is_noticed(changed):
    counts = [1, 0, 2, 1, 0, 0]
    counts[changed] += 1
    windows = Windows()
    word = EPOCH << 16 | Kind.DECODE
    windows.write_record([header_unit(word, Header(3, 0, 4, 0, 0)), count_unit(word, counts)])
    with pytest.raises(Corruption) as caught:
        windows.dispatch()
    assert (caught.value.region, caught.value.rank, caught.value.value) == ("records", OTHER, 5)
    assert windows.session.received[OTHER].tolist() == [0] * LAYOUT.parameters.local_experts
