"""Which features a release of SGLang has: also one that is built from source, or not final yet."""

import pytest

from sglang_ascend_moe.serving import sglang_release
from sglang_ascend_moe.serving.sglang_release import reaches


@pytest.mark.parametrize(
    ("release", "first", "expected"),
    [
        ("0.5.22", "0.5.23", False),
        ("0.5.23", "0.5.23", True),
        ("0.5.9", "0.5.23", False),
        ("0.5.23", "", True),
        pytest.param("0.5.23rc1", "0.5.23", True, id="before-it-is-final"),
        pytest.param("0.5.22rc1", "0.5.23", False, id="before-an-earlier-one"),
        pytest.param("0.5.24.dev7+g0123abc", "0.5.24", True, id="from-a-clone"),
        pytest.param("0.5.23.post1", "0.5.23.post1", True, id="mended-later"),
        pytest.param("0.5.23", "0.5.23.post1", False, id="before-it-is-mended"),
        pytest.param("0.0.0.dev0", "0.5.23", True, id="from-sources-without-history"),
    ],
)
def test_a_release_has_what_came_with_it_or_before(monkeypatch: pytest.MonkeyPatch, release, first, expected):
    assert reaches(first, release) is expected
    monkeypatch.setattr(sglang_release, "installed", lambda: release)
    assert reaches(first) is expected
