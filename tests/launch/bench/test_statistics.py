"""Times become medians without losing the slowest rank or the spread."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.launch.bench.statistics import WIDEST, Spread, elapsed, geometric_mean, quantile, spread


def test_an_iteration_takes_from_the_first_begin_to_the_last_end():
    begins = [[10, 20, 35], [11, 27, 30]]
    ends = [[15, 27, 39], [13, 31, 38]]
    assert elapsed(begins, ends) == [5, 11, 9]


def test_ranks_with_different_numbers_of_iterations_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        elapsed([[1, 2], [1]], [[1, 2], [1, 2]])


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        ([7000], (7, 7, 7)),
        ([1000, 3000], (2, 1.2, 2.8)),
        ([5000, 1000, 3000], (3, 1.4, 4.6)),
        ([n * 1000 for n in range(11)], (5, 1, 9)),
    ],
    ids=["one", "two", "unordered", "eleven"],
)
def test_spread_is_median_and_deciles_in_microseconds(nanoseconds: list[int], expected: tuple[float, ...]):
    assert spread(nanoseconds) == pytest.approx(expected)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
def test_median_is_that_of_the_standard_library(values: list[int]):
    assert quantile(sorted(values), 0.5) == pytest.approx(statistics.median(values))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=50), st.floats(0, 1))
def test_a_quantile_lies_between_the_extremes(values: list[int], part: float):
    assert min(values) <= quantile(sorted(values), part) <= max(values)


def test_geometric_mean_of_a_ratio_and_its_inverse_is_one():
    assert geometric_mean([4, 0.25]) == pytest.approx(1)
    assert geometric_mean([2, 8]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("found", "doubtful"),
    [
        (Spread(median=100, p10=90, p90=110), False),
        (Spread(median=100, p10=60, p90=60 * WIDEST), False),
        (Spread(median=100, p10=60, p90=61 * WIDEST), True),
        (spread([100_000] * 19 + [10_000_000]), False),
        (spread([100_000] * 15 + [4_000_000] * 5), True),
        (spread([4_000_000] * 15 + [100_000] * 5), True),
        (spread([100_000, 4_000_000] * 10), True),
    ],
    ids=["quiet", "widest", "wider", "one outlier", "a quarter disturbed", "a quarter undisturbed", "half disturbed"],
)
def test_a_median_is_doubtful_if_more_than_a_tenth_of_the_iterations_is_far_from_others(found: Spread, doubtful: bool):
    assert found.doubtful is doubtful
