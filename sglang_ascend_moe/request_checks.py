"""What a server refuses of a request before a rank sees it. The function is a row of the table in `plugin`."""

from typing import Any


def refuse_unusable_prompt(manager: Any, obj: Any, input_ids: Any) -> None:  # noqa: ARG001 - as SGLang calls it
    """Before `TokenizerManager._validate_one_request`: a prompt has tokens, and every one is of the model's vocabulary.

    SGLang gives them to the ranks as they are. None stands for a prompt of embeddings. Raises ValueError, which SGLang
    answers with 400.
    """
    if input_ids is None:
        return
    if not input_ids:
        raise ValueError("the prompt is empty")
    vocabulary = manager.model_config.vocab_size
    for position, token in enumerate(input_ids):
        if not (isinstance(token, int) and 0 <= token < vocabulary):
            raise ValueError(
                f"input_ids: {token!r} at position {position} is no token of the model, which has {vocabulary}"
            )
