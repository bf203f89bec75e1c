"""Every command and snippet of README.md and of the first section of each page of docs/ works as it stands.

A folder MODEL with a tiny checkpoint is where commands are typed. The test of a step also does the steps that it needs.
"""

import re

import pytest

from sglang_ascend_moe.launch.main import COMMANDS
from tests.packaging.source_tree import ROOT
from tests.readme.extraction import SHOWN, TYPED, Snippet, Step, blocks, documented, has_ranks, texts
from tests.readme.reader import Reader
from tests.readme.table import ROWS, Way, row_of

STEPS = documented(ROOT)


def name(step: Step) -> str:
    return f"{step.page}-{step.file or 'snippet'}" if isinstance(step, Snippet) else step.text


def params() -> list:
    """A command that hands nothing on is typed once, whatever the page."""
    found: dict = {}
    for step in STEPS:
        row = row_of(step)
        if not has_ranks(step) and row is not None and row.way is not Way.ELSEWHERE:
            marks = [pytest.mark.nightly] if row.way is Way.NIGHTLY else []
            key = (step.page, step.text) if step.files else step.text
            found.setdefault(key, pytest.param(step, id=name(step), marks=marks))
    return list(found.values())


def test_every_command_has_a_row_in_the_table():
    assert [f"{step.page}:{step.line}: {step.text}" for step in STEPS if row_of(step) is None] == []


def test_every_row_of_the_table_has_a_command():
    assert [row.pattern for row in ROWS if row not in {row_of(step) for step in STEPS}] == []


def test_what_runs_elsewhere_is_there():
    assert [row.pattern for row in ROWS if (row.way is Way.ELSEWHERE) != bool(row.by)] == []
    assert [row.by for row in ROWS if row.by and not (ROOT / row.by).is_file()] == []


def test_make_targets_exist_and_ci_runs_the_test():
    named = {found for step in STEPS for found in re.findall(r"^make ([a-z-]+)", step.text)}
    defined = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= defined
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)


def test_every_block_is_known_to_be_typed_or_only_read():
    strange = {
        f"{page}:{block.line}": block.language
        for page, text in texts(ROOT).items()
        for block in blocks(text)
        if block.language not in TYPED | SHOWN
    }
    assert strange == {}


def test_commands_that_a_sentence_mentions_exist():
    mentioned = {found for text in texts(ROOT).values() for found in re.findall(r"`ascend-moe ([a-z][a-z-]*)", text)}
    assert mentioned <= set(COMMANDS)


@pytest.mark.parametrize("step", params())
def test_a_command_or_snippet_works(reader: Reader, step: Step):
    reader.do(step)
