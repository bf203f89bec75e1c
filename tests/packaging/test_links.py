"""Relative links of every page lead to a file, and to a heading if they name one."""

import re
from functools import cache
from pathlib import Path

import pytest

from tests.packaging.source_tree import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def text_without_code(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@cache
def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_without_code(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_without_code(page)):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if "://" not in link and (not file.exists() or (anchor and anchor not in anchors(file))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    assert broken_links(page) == []


def test_a_link_without_file_or_heading_is_seen(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `--flag`, and more\n[a](#a---flag-and-more) [b](#b) [c](page.md#a) [d](none.md) [e](page.md)\n"
    )
    assert broken_links(page) == ["#b", "page.md#a", "none.md"]
