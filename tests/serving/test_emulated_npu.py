"""Whole engines on an emulated NPU: SGLang's unmodified NPU backend, from flag to tokens."""

from tests.serving.configurations import on_emulated_npu


def test_stock_sglang_on_the_emulated_npu_answers_as_on_the_host(
    npu_fork_server, checkpoint, prompts, stock_answers, compare_all
):
    with npu_fork_server.start(on_emulated_npu(checkpoint)) as engine:
        outcomes = compare_all(engine, prompts, stock_answers("bfloat16"), "bfloat16")
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
