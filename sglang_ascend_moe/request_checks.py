"""What a server refuses of a request before a rank sees it. The function is a row of the table in `plugin`."""

from typing import Any


def refuse_unknown_tokens(manager: Any, obj: Any, input_ids: Any) -> None:  # noqa: ARG001 - as SGLang calls it
    """Before `TokenizerManager._validate_one_request`: every id of a prompt has to be one of the model's vocabulary.

    SGLang gives them to the embedding as they are. Raises ValueError, which SGLang answers with 400.
    """
    vocabulary = manager.model_config.vocab_size
    for position, token in enumerate(input_ids or ()):
        if not (isinstance(token, int) and 0 <= token < vocabulary):
            raise ValueError(
                f"input_ids: {token!r} at position {position} is no token of the model, which has {vocabulary}"
            )
