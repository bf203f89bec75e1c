"""Whole engines on emulated NPUs: SGLang's unmodified NPU backend, from flag to tokens. No NPU has run this."""

import pytest

from tests.serving.configurations import ours_on_npu, stock_on_npu

pytestmark = pytest.mark.nightly


def test_stock_sglang_answers_as_on_the_host(npu_fork_server, checkpoint, prompts, stock_answers, compare_all):
    with npu_fork_server.start(stock_on_npu(checkpoint)) as engine:
        outcomes = compare_all(engine, prompts, stock_answers("bfloat16"), "bfloat16")
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []


def test_answers_are_those_of_the_host(npu_fork_server, checkpoint, prompts, stock_answers, compare_all):
    with npu_fork_server.start(ours_on_npu(checkpoint)) as engine:
        outcomes = compare_all(engine, prompts, stock_answers("bfloat16"), "bfloat16")
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
