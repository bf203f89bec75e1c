"""Which graphs are captured: every batch and length has one, padding and number are bounded."""

from math import log2

from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.serving.host.graph_buckets import SMALLEST_LENGTH, Limits, choose_buckets, within

limits = st.builds(
    Limits,
    requests=st.integers(1, 4096),
    alignment=st.sampled_from([1, 2, 3, 4, 8, 16]),
    length=st.integers(1, 1 << 20),
    token_bytes=st.integers(1, 1 << 16),
)


@given(limits, st.integers(1, 4096))
def test_a_batch_is_padded_to_less_than_twice_its_aligned_size(drawn, requests):
    buckets = choose_buckets(drawn, most_bytes=1 << 62)
    requests = min(requests, drawn.requests)
    aligned = -(-requests // drawn.alignment) * drawn.alignment
    bucket = next(size for size in buckets.batches if size >= requests)
    assert bucket < 2 * aligned
    assert all(size % drawn.alignment == 0 for size in buckets.batches)


@given(limits, st.integers(1, 1 << 20))
def test_a_length_is_padded_to_less_than_twice_its_tokens_and_the_smallest_length(drawn, tokens):
    buckets = choose_buckets(drawn)
    tokens = min(tokens, drawn.length)
    bucket = buckets.length_for(tokens)
    assert tokens <= bucket < 2 * tokens + SMALLEST_LENGTH


def test_the_greatest_length_takes_the_place_of_one_just_below_it():
    buckets = choose_buckets(Limits(requests=1, alignment=1, length=1028, token_bytes=1))
    assert list(buckets.lengths) == [128, 256, 512, 1028]


def test_a_length_that_a_graph_holds_exactly_is_not_padded():
    buckets = choose_buckets(Limits(requests=1, alignment=1, length=1000, token_bytes=1))
    assert [buckets.length_for(tokens) for tokens in (1, 128, 129, 256, 1000)] == [128, 128, 256, 256, 1000]


@given(limits)
def test_the_number_of_graphs_is_bounded(drawn):
    buckets = choose_buckets(drawn)
    batches = log2(max(1, drawn.requests / drawn.alignment)) + 2
    lengths = log2(max(1, drawn.length / SMALLEST_LENGTH)) + 2
    assert buckets.graphs == len(buckets.batches) * len(buckets.lengths) <= batches * lengths


@given(limits, st.integers(0, 1 << 40))
def test_no_graph_gathers_more_bytes_than_allowed(drawn, most_bytes):
    buckets = choose_buckets(drawn, most_bytes)
    assert buckets.bytes <= most_bytes
    refused = [size for size in choose_buckets(drawn, 1 << 62).batches if size not in buckets.batches]
    assert all(size * drawn.length * drawn.token_bytes > most_bytes for size in refused)


@given(limits)
def test_sizes_ascend_and_reach_the_limits(drawn):
    buckets = choose_buckets(drawn, most_bytes=1 << 62)
    assert list(buckets.batches) == sorted(set(buckets.batches))
    assert list(buckets.lengths) == sorted(set(buckets.lengths))
    assert drawn.requests <= buckets.batches[-1] < drawn.requests + drawn.alignment
    assert buckets.lengths[-1] == drawn.length


def test_batches_that_are_asked_for_are_no_larger_than_any_that_comes():
    limits = Limits(requests=7, alignment=2, length=128, token_bytes=1)
    assert limits.largest_batch == 8
    assert within([4, 16, 32], limits.largest_batch) == [4, 8]
    assert within([2, 4], limits.largest_batch) == [2, 4]
