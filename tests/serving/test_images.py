"""A multimodal MoE model, Qwen3-VL-MoE: images through its processor, text alone, and both in one batch."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.tiny_model.tokenizer import TRAINING_TEXT
from tests.serving.configurations import PARALLEL, ours, stock
from tests.serving.engines import EngineConfig, ForkServer
from tests.serving.prompts import NEW_TOKENS
from tests.serving.vision_model import IMAGE, picture, write_vision_checkpoint

DTYPE = "float32"
QUESTION = f"{IMAGE}What is the name of that mountain?"
PROMPTS: list[tuple[str, list[str]]] = [
    (TRAINING_TEXT[:200], []),
    (QUESTION, [picture(1, 96, 64)]),
    (QUESTION, [picture(4, 96, 64)]),
    (f"Two children asked {IMAGE} and {IMAGE}.", [picture(2, 64, 64), picture(3, 200, 120)]),
    (TRAINING_TEXT[300:320], []),
]
"""Texts, each with its images."""
ASKED = [[0, 4], [1, 2, 3], [0, 1, 2, 3, 4]]
"""The prompts of each batch: texts, images, both."""

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def vision_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vision_checkpoint(tmp_path_factory.mktemp("vision"))


def answers(fork_server: ForkServer, config: EngineConfig) -> list[Answer]:
    """To the prompts of all batches, in order."""
    with fork_server.start(config) as engine:
        return [
            answer
            for places in ASKED
            for answer in engine.continue_texts(
                [PROMPTS[place][0] for place in places], [PROMPTS[place][1] for place in places], NEW_TOKENS
            )
        ]


@pytest.fixture(scope="module")
def expected(fork_server: ForkServer, vision_checkpoint: Path) -> list[Answer]:
    return answers(fork_server, stock(vision_checkpoint, DTYPE))


def test_another_image_gives_another_answer(expected):
    first, second = expected[2:4]
    assert first.tokens != second.tokens


@pytest.mark.parametrize("setup", PARALLEL)
def test_tokens_are_those_of_stock_sglang_on_one_rank(
    fork_server: ForkServer, vision_checkpoint: Path, expected, record_comparisons, setup
):
    found = answers(fork_server, ours(vision_checkpoint, DTYPE, **PARALLEL[setup]))
    outcomes = record_comparisons(expected, found, DTYPE)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert [outcome.equal_tokens for outcome in outcomes] == [NEW_TOKENS] * len(expected)
