"""Every word and record of a window is replaced at every step: the result is right, or every rank names region, writer
and value; a word that looks as if it had not come yet ends in a timeout that names who should have written it.
"""

from __future__ import annotations

import pytest

from .corrupt_words import GRANTED, HOWS, PLACES, all_cases, outcomes_of, require_known, sample
from .surface import granting

SEED = 1129


@pytest.mark.parametrize("sampled", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["sample", "all"])
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("ranks", [2, 3], ids=lambda ranks: f"{ranks}ranks")
@pytest.mark.timeout(1800)
def test_a_replaced_word_is_named_or_does_no_harm(pools, ranks, how, sampled):
    cases = all_cases(ranks, how, SEED)
    if sampled:
        cases = sample(cases, SEED)
    by_rank = pools.run(ranks, outcomes_of, how, cases, SEED, deadline_s=1800.0)
    for case, *outcomes in zip(cases, *by_rank, strict=True):
        require_known(case, outcomes, how)


@pytest.mark.parametrize("sampled", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["sample", "all"])
@pytest.mark.parametrize("how", ["decode", "run-prefill"])
@pytest.mark.timeout(1800)
def test_a_replaced_word_of_a_grant_is_named_or_does_no_harm(pools, how, sampled):
    places = GRANTED if sampled else (*PLACES, *GRANTED)
    cases = all_cases(3, how, SEED, places)
    if sampled:
        cases = sample(cases, SEED)
    by_rank = pools.run(3, granting, outcomes_of, how, cases, SEED, deadline_s=1800.0)
    for case, *outcomes in zip(cases, *by_rank, strict=True):
        require_known(case, outcomes, how)
