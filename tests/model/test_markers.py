"""The model, the code and docs/protocol-model.md name the same steps of the protocol."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.model.test_protocol_model import REMOVALS
from tests.model.verification import SOURCES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/protocol-model.md"
MARKER = re.compile(r"@protocol ([a-z]+(?:-[a-z]+)*)")


def markers(*patterns: str) -> set[str]:
    files = [file for pattern in patterns for file in ROOT.glob(pattern)]
    return {name for file in files for name in MARKER.findall(file.read_text())}


class Step(NamedTuple):
    """A row of the page's table of steps."""

    marker: str
    where: str  # both (kernels), host, or schedules
    switches: str


def rows_of_page() -> list[Step]:
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z]+) \|[^|]*\|([^|]*)\|$", PAGE.read_text(), flags=re.MULTILINE)
    return [Step(*row) for row in rows]


HOST = ("kernels/host/*.cpp", "kernels/host/*.h")
PYTHON = ("sglang_ascend_moe/**/*.py",)


def test_the_model_has_the_steps_of_the_code():
    model = {name for source in SOURCES for name in MARKER.findall(source.read_text())}
    assert model == markers(*HOST, *PYTHON)


def test_the_page_lists_the_steps_of_the_code():
    rows = rows_of_page()
    assert sorted(row.marker for row in rows) == sorted(markers(*HOST, *PYTHON))
    assert {row.marker for row in rows if row.where == "schedules"} == markers(*PYTHON)


def test_ascend_kernels_have_the_steps_of_both_kernels_and_no_others():
    found = markers("kernels/ascend/*.cpp", "kernels/ascend/*.h")
    needed = {row.marker for row in rows_of_page() if row.where == "both"}
    assert needed <= found <= markers(*HOST)


def test_every_step_has_been_taken_away_once():
    assert {name for removal in REMOVALS for name in removal.markers} == markers(*HOST, *PYTHON)


@pytest.mark.parametrize("removal", REMOVALS, ids=lambda removal: removal.step.lower())
def test_the_model_knows_the_switch(removal):
    assert any(f"WITHOUT_{removal.step}\n" in source.read_text() for source in SOURCES)


def test_the_model_has_no_other_switches():
    switches = {name for source in SOURCES for name in re.findall(r"WITHOUT_([A-Z_]+)\b", source.read_text())}
    assert switches == {removal.step for removal in REMOVALS}


def test_the_page_names_the_switches_of_every_step():
    listed = {row.marker: set(re.findall(r"`([A-Z_]+)`", row.switches)) for row in rows_of_page()}
    assert listed == {
        marker: {removal.step for removal in REMOVALS if marker in removal.markers}
        for marker in markers(*HOST, *PYTHON)
    }
