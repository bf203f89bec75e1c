"""The tokens do not depend on how SGLang's scheduler cuts and groups the work."""

import pytest

from tests.serving.configurations import PARALLEL, ours
from tests.serving.prompts import NEW_TOKENS

CHUNK = 64


def faults(outcomes):
    return [outcome.fault for outcome in outcomes if outcome.fault]


@pytest.mark.nightly
def test_one_by_one_and_again_from_the_prefix_cache(fork_server, checkpoint, prompts, stock_answers, compare_all):
    expected = stock_answers("float32")
    with fork_server.start(ours(checkpoint, "float32")) as engine:
        assert faults(compare_all(engine, prompts, expected, "float32", together=False)) == []
        assert faults(compare_all(engine, prompts, expected, "float32", together=False)) == []
        cached = engine.generate_with_cache(prompts, NEW_TOKENS).cached_tokens
    assert [count for prompt, count in zip(prompts, cached, strict=True) if count < len(prompt) - 1] == []


def test_a_rank_without_requests_takes_part(fork_server, checkpoint, prompts, stock_answers, compare_all):
    with fork_server.start(ours(checkpoint, "float32", **PARALLEL["dp2-attention-ep2"])) as engine:
        outcomes = compare_all(engine, prompts, stock_answers("float32"), "float32", together=False)
    assert faults(outcomes) == []


def test_prompts_in_chunks(fork_server, checkpoint, prompts, stock_answers, compare_all):
    assert max(map(len, prompts)) > 10 * CHUNK
    with fork_server.start(ours(checkpoint, "float32", chunked_prefill_size=CHUNK)) as engine:
        outcomes = compare_all(engine, prompts, stock_answers("float32"), "float32")
    assert faults(outcomes) == []
