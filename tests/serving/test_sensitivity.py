"""The comparison notices what it is there for: experts that do nothing, and one wrong row."""

import pytest

from sglang_ascend_moe.launch.comparison import TOLERANCES, compare
from tests.serving.configurations import ours, stock
from tests.serving.prompts import NEW_TOKENS


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.nightly)])
def test_the_tokens_of_every_prompt_change_without_the_experts(fork_server, checkpoint, prompts, stock_answers, dtype):
    with fork_server.start(stock(checkpoint, dtype, "zero_moe_output")) as engine:
        answers = engine.generate(prompts, NEW_TOKENS, together=True)
    unchanged = [
        len(prompt)
        for prompt, answer, expected in zip(prompts, answers, stock_answers(dtype), strict=True)
        if answer.tokens == expected.tokens
    ]
    assert unchanged == []


# In bfloat16 the comparison must allow what rounding does, and one row of a long prompt can hide below that.
@pytest.mark.parametrize(
    ("dtype", "noticed_share"), [("float32", 1.0), pytest.param("bfloat16", 0.5, marks=pytest.mark.nightly)]
)
def test_one_corrupted_row_of_the_exchange_is_a_fault(
    fork_server, checkpoint, prompts, stock_answers, dtype, noticed_share
):
    with fork_server.start(ours(checkpoint, dtype, "corrupt_one_row")) as engine:
        answers = engine.generate(prompts, NEW_TOKENS)
    noticed = [
        len(prompt)
        for prompt, answer, expected in zip(prompts, answers, stock_answers(dtype), strict=True)
        if compare(expected, answer, TOLERANCES[dtype]).fault
    ]
    assert len(noticed) >= noticed_share * len(prompts)
