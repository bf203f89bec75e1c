"""The rule that decides whether two greedy continuations are the same."""

import pytest

from sglang_ascend_moe.launch.comparison import Answer, Candidate, Tolerance, compare

TOLERANCE = Tolerance(logprob=0.25, margin=0.5)


def answer(*positions: dict[int, float]) -> Answer:
    """An answer that at every position takes the best of the given tokens."""
    ranked = [sorted(position.items(), key=lambda item: -item[1]) for position in positions]
    return Answer(
        [position[0][0] for position in ranked],
        [[Candidate(token, logprob) for token, logprob in position] for position in ranked],
    )


EXPECTED = answer({7: -0.5, 8: -2.0}, {3: -1.0, 4: -1.25, 5: -3.0}, {9: -0.1, 1: -4.0})


def test_equal_answers_are_equal():
    outcome = compare(EXPECTED, EXPECTED, TOLERANCE)
    assert (outcome.equal_tokens, outcome.close_call, outcome.logprob_difference, outcome.fault) == (3, None, 0.0, "")


def test_logprobs_may_move_within_the_tolerance():
    found = answer({7: -0.75, 8: -2.0}, {3: -1.0, 4: -1.25}, {9: -0.1, 1: -4.0})
    outcome = compare(EXPECTED, found, TOLERANCE)
    assert (outcome.equal_tokens, outcome.logprob_difference, outcome.fault) == (3, 0.25, "")


@pytest.mark.parametrize(
    "first",
    [
        pytest.param({7: -1.0, 8: -2.0}, id="best"),
        pytest.param({7: -0.5, 8: -3.0}, id="second"),
        pytest.param({7: -0.5, 6: -2.5}, id="second-is-gone"),
    ],
)
def test_logprobs_that_move_further_are_a_fault_though_tokens_are_equal(first):
    found = answer(first, {3: -1.0, 4: -1.25}, {9: -0.1, 1: -4.0})
    outcome = compare(EXPECTED, found, TOLERANCE)
    assert outcome.equal_tokens == 0
    assert "logprobs of token 0 differ by" in outcome.fault


def test_a_close_call_is_counted_and_ends_the_comparison():
    found = answer({7: -0.5, 8: -2.0}, {4: -1.1, 3: -1.15}, {2: -0.1, 1: -4.0})
    outcome = compare(EXPECTED, found, TOLERANCE)
    assert (outcome.equal_tokens, outcome.close_call, outcome.fault) == (1, 1, "")


@pytest.mark.parametrize(
    "second",
    [
        pytest.param({5: -1.0, 3: -1.0, 4: -1.25}, id="far-behind"),
        pytest.param({6: -0.9, 3: -1.0, 4: -1.25}, id="not-a-candidate"),
    ],
)
def test_another_token_that_is_not_close_is_a_fault(second):
    outcome = compare(EXPECTED, answer({7: -0.5, 8: -2.0}, second), TOLERANCE)
    assert outcome.close_call is None
    assert "token 1 is" in outcome.fault


def test_a_missing_token_is_a_fault():
    found = Answer(EXPECTED.tokens[:2], EXPECTED.candidates[:2])
    assert compare(EXPECTED, found, TOLERANCE).fault == "2 tokens instead of 3"
    assert compare(EXPECTED.after(1), found.after(1), TOLERANCE).equal_tokens == 1


def test_what_is_as_good_as_impossible_may_move_as_long_as_it_stays_so():
    sure = answer({7: -0.01, 8: -7.0})
    tolerance = TOLERANCE._replace(far=4.0)
    assert compare(sure, answer({7: -0.01, 8: -9.0}), tolerance).fault == ""
    assert compare(sure, answer({7: -0.01, 6: -4.5}), tolerance).fault == ""
    assert "logprobs of token 0 differ by 2.000" in compare(sure, answer({7: -0.01, 8: -2.01}), tolerance).fault
    assert "differ by 2.000" in compare(sure, answer({7: -0.01, 8: -9.0}), TOLERANCE).fault
