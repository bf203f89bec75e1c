"""Ascend kernels name a word that was replaced, as the host kernels do, beside which they run here too."""

from __future__ import annotations

import pytest

from sglang_ascend_moe.native.codes import Step
from tests.exchange.corrupt_words import Case, all_cases, outcomes_of, require_known, sample

from .host_model import on_ascend, on_mixed

SEED = 1129
BETWEEN_LAUNCHES = (Step.ANNOUNCE, Step.EXPERTS, Step.DONE, Step.REDUCE)


def is_knowable(case: Case) -> bool:
    """A kernel has its epoch from nowhere else: a whole line of state from before is what it goes on from."""
    return case[:2] not in (("state", "previous"), ("part", "previous")) or case.word is not None


@pytest.mark.parametrize("run_on", [on_ascend, on_mixed], ids=["ascend", "mixed"])
@pytest.mark.parametrize("how", ["decode", "run-prefill", "refused"])
@pytest.mark.parametrize("sampled", [True, pytest.param(False, marks=pytest.mark.nightly)], ids=["sample", "all"])
@pytest.mark.timeout(1800)
def test_a_replaced_word_is_named_or_does_no_harm(pools, library, run_on, how, sampled):
    cases = [case for case in all_cases(2, how, SEED) if case.step in BETWEEN_LAUNCHES and is_knowable(case)]
    if sampled:
        cases = sample(cases, SEED)
    by_rank = pools.run(2, run_on, library, 2, outcomes_of, how, cases, SEED, deadline_s=1800.0)
    for case, *outcomes in zip(cases, *by_rank, strict=True):
        require_known(case, outcomes, how)
