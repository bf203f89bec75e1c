"""Exchanges inside tapes: whatever a rank replays, and whatever is eager beside it, gives the bits of eager steps."""

from itertools import permutations

import pytest

from tests.exchange.conftest import pools  # noqa: F401 - the fixture
from tests.graph_capture.ranks import BUCKETS, Turn, broken_rules, compare_turns, replay_often

# What the ranks do in one step, by rank; the last is repeated for further ranks.
SITUATIONS = {
    "same bucket": [Turn(4, 4), Turn(4, 4)],
    "different buckets": [Turn(2, 2), Turn(8, 8), Turn(3, 4)],
    "padded rows": [Turn(1, 8), Turn(3, 4), Turn(5, 8)],
    "one rank eager": [Turn(3), Turn(3, 4)],
    "one rank replays": [Turn(7, 8), Turn(1)],
    "an idle rank replays": [Turn(0, 2), Turn(6, 8)],
    "an idle rank is eager": [Turn(5, 8), Turn(0), Turn(2, 2)],
    "all idle": [Turn(0, 4), Turn(0, 2)],
    "prefill": [Turn(8, prefill=True), Turn(5, prefill=True), Turn(0, prefill=True)],
}


def for_ranks(situation, ranks):
    turns = SITUATIONS[situation]
    return [turns[min(rank, len(turns) - 1)] for rank in range(ranks)]


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("situation", SITUATIONS)
def test_results_are_those_of_eager_ranks(pools, ranks, situation):  # noqa: F811
    assert pools.run(ranks, compare_turns, [for_ranks(situation, ranks)] * 3) == [[]] * ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_batch_in_every_bucket_that_holds_it(pools, ranks):  # noqa: F811
    schedule = [
        [Turn((tokens + rank) % (bucket + 1), bucket) for rank in range(ranks)]
        for bucket in BUCKETS
        for tokens in range(bucket + 1)
    ]
    assert pools.run(ranks, compare_turns, schedule) == [[]] * ranks


def test_steps_of_every_kind_in_every_order(pools):  # noqa: F811
    kinds = ["same bucket", "different buckets", "one rank eager", "prefill"]
    schedule = [for_ranks(situation, 2) for order in permutations(kinds) for situation in order]
    assert pools.run(2, compare_turns, schedule) == [[], []]


def test_ten_thousand_replays(pools):  # noqa: F811
    assert pools.run(2, replay_often, 10_000, 500, deadline_s=120.0) == [0, 0]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("x in columns", "takes x with dense rows"),
        ("out in columns", "takes out with dense rows"),
        ("ids in columns", "takes contiguous ids"),
        ("weights to convert", "takes contiguous float32 weights"),
        ("run", "allocates what it returns"),
        ("dispatch", "allocates what it returns"),
        ("counts to the host", "hands a value to Python"),
    ],
)
def test_a_step_that_breaks_a_rule_is_refused(pools, rule, said):  # noqa: F811
    assert [said in found[rule] for found in pools.run(2, broken_rules)] == [True, True]
