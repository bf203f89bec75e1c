"""Earlier releases of SGLang serve what is said of them, each in an environment of its own."""

import pytest

from tests.versions.appendix import on_page
from tests.versions.environment import python_with
from tests.versions.served import BEGIN, EARLIER, README, results, run, selection, table


def test_the_readme_shows_the_results_of_every_earlier_release():
    _, found, _ = on_page(BEGIN, README)
    assert found == table(results())
    assert list(results()) == EARLIER
    assert [version for version, one in results().items() if list(one.passed) != list(selection(version))] == []


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", EARLIER)
def test_an_earlier_release_serves(version: str):
    found = run(version, python_with(version))
    assert found.failed == []
    assert [file for file, count in found.passed.items() if not count] == []
