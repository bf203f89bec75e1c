"""Memory of a tape: what lives at the same time does not overlap, and the rest is shared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.graph_capture.arena import ALIGNMENT, Arena, Lifetime, place


@st.composite
def lifetimes(draw):
    drawn = draw(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 30), st.integers(0, 10)), max_size=40))
    return [Lifetime(number, size, first, first + length) for number, (size, first, length) in enumerate(drawn)]


@given(lifetimes())
def test_memory_that_is_in_use_at_the_same_call_does_not_overlap(drawn):
    offsets, total = place(drawn)
    for one in drawn:
        assert offsets[one.memory] % ALIGNMENT == 0
        assert offsets[one.memory] + one.bytes <= total
        for other in drawn:
            together = one.first <= other.last and other.first <= one.last
            if one.memory < other.memory and together and one.bytes and other.bytes:
                begin, end = sorted((one, other), key=lambda item: offsets[item.memory])
                assert offsets[begin.memory] + begin.bytes <= offsets[end.memory]


@given(lifetimes())
def test_an_arena_is_no_larger_than_without_sharing(drawn):
    assert place(drawn)[1] <= sum(max(1, -(-item.bytes // ALIGNMENT)) * ALIGNMENT for item in drawn)


def test_a_chain_of_results_needs_two_places():
    chain = [Lifetime(number, 1024, number, number + 1) for number in range(10)]
    assert place(chain)[1] == 2048


def test_a_larger_tape_leaves_the_memory_of_a_smaller_one_where_it_is():
    arena = Arena()
    small = arena.part(0, 64, 64)
    small.fill_(7)
    large = arena.part(0, 4096, 4096)
    large.fill_(9)
    assert small.tolist() == [7] * 64
    assert arena.part(64, 64, 128).data_ptr() == large.data_ptr() + 64
    assert arena.bytes == 64 + 4096 + 2 * ALIGNMENT


def test_memory_cannot_be_resized_under_its_tapes():
    part = Arena().part(0, 64, 64)
    with pytest.raises(RuntimeError, match="not resizable"):
        part.resize_(4096)
