"""A dispatch whose rows travel with the counts, explored and not taken: what it rests on; docs/protocol-model.md."""

from pathlib import Path

import pytest

from tests.model.test_protocol_model import BRIEF, THREE, TWO
from tests.model.verification import verify

SINGLE = ("SINGLE_RENDEZVOUS", "MAY_DISPATCH")


@pytest.mark.parametrize(
    ("ranks", "scenario"),
    [
        pytest.param(TWO, (BRIEF,), id="2-ranks"),
        pytest.param(THREE, (BRIEF, "EXPERTS_AT_ANY_TIME"), id="3-ranks"),
        pytest.param(
            THREE, (BRIEF, "MAY_BE_INVALID", "PLACING_IN_ORDER"), id="refusals-in-order", marks=pytest.mark.nightly
        ),
    ],
)
def test_rows_that_nobody_waits_for_are_neither_stale_nor_overwritten(ranks, scenario, tmp_path: Path):
    verdict = verify("exchange.pml", ranks + SINGLE + scenario, tmp_path, optimised=True)
    assert (verdict.errors, verdict.reason, verdict.complete) == (0, "", True)


@pytest.mark.parametrize(
    ("ranks", "switches", "reason"),
    [
        pytest.param(TWO, ("MAY_ABANDON",), "arrive_word", id="a-dispatch-is-never-combined"),
        pytest.param(TWO, ("ROWS_OUTLAST_COMBINE",), "row_in", id="rows-are-read-after-their-combine"),
        pytest.param(THREE, ("MAY_BE_INVALID", BRIEF), "arrive_word_flight", id="a-refusal-comes-after-the-rows"),
        pytest.param(TWO, ("WITHOUT_WAIT_COUNTS", BRIEF), "count_data", id="counts-are-read-before-they-are-there"),
    ],
)
def test_a_single_rendezvous_fails_where(ranks, switches, reason: str, tmp_path: Path):
    verdict = verify("exchange.pml", ranks + SINGLE + switches, tmp_path)
    assert verdict.errors > 0
    assert reason in verdict.reason
