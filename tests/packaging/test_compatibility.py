"""docs/compatibility.md is what tests and the table of conflicts say."""

import pytest

from tests.packaging import compatibility
from tests.packaging.compatibility import FEATURES, NEVER, NO, REFUSED, YES, Feature
from tests.packaging.source_tree import ROOT


def test_the_page_is_up_to_date():
    assert compatibility.PAGE.read_text() == compatibility.page(), "run `python -m tests.packaging.compatibility`"


def test_every_feature_is_shown_by_tests_that_exist():
    named = {shown for feature in FEATURES for shown in (feature.host, feature.emulated)} - {"", REFUSED}
    assert [shown for shown in sorted(named) if not (ROOT / "tests" / shown).is_file()] == []


@pytest.mark.parametrize(
    ("feature", "outcomes"),
    [
        (Feature("x", "a.py", "b.py"), (YES, YES, NEVER)),
        (Feature("x", "a.py"), (YES, NEVER, NEVER)),
        (Feature("x", "a.py", REFUSED), (YES, NO, NO)),
        (Feature("x", flag="--dcp-size"), (NO, NO, NO)),
    ],
    ids=["both", "host", "refused on NPUs", "refused"],
)
def test_where_a_feature_works(feature: Feature, outcomes: tuple[str, str, str]):
    assert feature.outcomes() == outcomes


def test_a_feature_that_is_not_refused_any_more_needs_tests():
    with pytest.raises(ValueError, match="x: --tp-size is not refused any more"):
        Feature("x", flag="--tp-size").outcomes()
