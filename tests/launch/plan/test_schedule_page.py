"""docs/benchmarks/schedule.md says what the model says today, as far as that is quickly computed."""

import pytest

from tests.launch.plan.schedule_page import (
    DEEPSEEK,
    PAGE,
    PICTURE,
    QWEN,
    constants_lines,
    page,
    published_lines,
    sensitivity_lines,
    supernode_lines,
)

RANKS = (16, 32, 64, 128, 256, 384)
PARTS = {
    "constants": constants_lines,
    "published": published_lines,
    "sensitivity": sensitivity_lines,
    "supernode, DeepSeek-V3": lambda: supernode_lines(DEEPSEEK, RANKS),
    "supernode, Qwen3-235B": lambda: supernode_lines(QWEN, RANKS),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_table_is_what_the_model_says(part: str):
    assert "\n".join(PARTS[part]()) in PAGE.read_text()


@pytest.mark.nightly
def test_the_whole_page_and_its_picture_are_what_the_model_says():
    text, picture = PAGE.read_text(), PICTURE.read_bytes()
    assert page() == text
    assert PICTURE.read_bytes() == picture
