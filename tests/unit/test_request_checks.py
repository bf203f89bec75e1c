"""A prompt without tokens, or with ids that the model does not know, is refused before a rank sees it."""

from types import SimpleNamespace

import pytest

from sglang_ascend_moe.request_checks import refuse_unusable_prompt

MANAGER = SimpleNamespace(model_config=SimpleNamespace(vocab_size=100))


@pytest.mark.parametrize("prompt", [[0, 99], None], ids=["first and last", "embeddings"])
def test_known_tokens_pass(prompt):
    refuse_unusable_prompt(MANAGER, None, prompt)


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="the prompt is empty"):
        refuse_unusable_prompt(MANAGER, None, [])


@pytest.mark.parametrize("token", [-1, 100, 2**70, "a", None, 1.0], ids=str)
def test_an_unknown_token_is_refused_by_its_position(token):
    with pytest.raises(ValueError, match="at position 1 is no token of the model, which has 100"):
        refuse_unusable_prompt(MANAGER, None, [5, token])
