"""README.md and docs/ stay short, and each page begins with what it comes to."""

import re
from pathlib import Path

import pytest

from tests.packaging.source_tree import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_WORDS = 20_000
"""As `wc -w README.md docs/*.md` counts, tables and all."""


def test_all_pages_together_can_be_read_in_an_afternoon():
    assert sum(len(page.read_text().split()) for page in PAGES) < MOST_WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_begins_with_text(page: Path):
    assert re.match(r"# .+\n\n(?!```|[#|!<])\S", page.read_text())
