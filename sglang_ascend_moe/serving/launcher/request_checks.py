"""What a server refuses of a request before a rank sees it, with 400, because it would end a rank, or answer 500."""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.serving.launcher.sampled_drafts import refuse_unverifiable
from sglang_ascend_moe.serving.options import options_of

MOST_ANSWERS = 4096
"""To one prompt (`n`). SGLang makes as many copies of the prompt at once."""
MOST_TOP_K = 2**31 - 1
"""SGLang's tensors of it have 32 bits."""


_FAULTS = (TypeError, AttributeError, LookupError, OverflowError, RecursionError, re.error)
_READING_ROUTES = (
    "/parse_function_call",
    "/separate_reasoning",
    "/configure_logging",
    "/add_external_corpus",
    "/remove_external_corpus",
    "/v1/loads",
    "/v1/chat/completions",
    "/invocations",
    "/vertex_generate",
    "/api/chat",
    "/api/generate",
)
"""What these read in the launcher and cannot use would be answered with 500."""
_RANK_ROUTES = ("/start_profile", "/stop_profile")
"""What ranks could not do of these is a RuntimeError in the launcher."""
_REPLICA_ROUTES = (
    "/init_weights_update_group",
    "/destroy_weights_update_group",
    "/update_weights_from_distributed",
    "/update_weights_from_tensor",
    "/init_weights_send_group_for_remote_instance",
    "/send_weights_to_remote_instance",
)
"""SGLang asserts that these are not asked of data-parallel ranks."""


@contextmanager
def _faults_of_the_request(server_args: Any) -> Iterator[None]:
    """SGLang answers a ValueError with 400, and everything else that reading a request may raise with 500."""
    try:
        yield
    except _FAULTS as error:
        if options_of(server_args) is None:
            raise
        raise ValueError(f"the request cannot be read: {type(error).__name__}: {error}") from error


def read_request(original: Callable[[Any], None], obj: Any) -> None:
    """Around `GenerateReqInput.normalize_batch_and_arguments`: `n` is in bounds, and `rid` and `sampling_params` are
    lists only where the prompt is one."""
    from sglang.srt.runtime_context import get_server_args

    server_args = get_server_args()
    if options_of(server_args) is None:
        original(obj)
        return
    with _faults_of_the_request(server_args):
        given = obj.sampling_params
        for parameters in given if isinstance(given, list) else [given]:
            answers = (parameters or {}).get("n", 1)
            if not 1 <= answers <= MOST_ANSWERS:
                raise ValueError(f"n: {answers!r} answers to one prompt; at least 1 and at most {MOST_ANSWERS}")
        original(obj)
    if obj.is_single and not (isinstance(obj.rid, str) and isinstance(obj.sampling_params, dict)):
        raise ValueError("rid and sampling_params: lists of them come with a list of prompts")


def read_embedding(_result: None, obj: Any) -> None:
    """After `EmbeddingReqInput.normalize_batch_and_arguments`. Raises ValueError."""
    from sglang.srt.runtime_context import get_server_args

    if options_of(get_server_args()) is not None and obj.is_single and not isinstance(obj.rid, str):
        raise ValueError("rid: a list of them comes with a list of prompts")


def make_parameters(original: Callable[..., Any], manager: Any, *arguments: Any, **keywords: Any) -> Any:
    """Around `TokenizerManager._create_tokenized_object`, which turns the fields of a request into objects."""
    with _faults_of_the_request(manager.server_args):
        return original(manager, *arguments, **keywords)


def read_chat(original: Callable[..., Any], serving: Any, *arguments: Any, **keywords: Any) -> Any:
    """Around the methods that make a prompt of the messages and template values of a chat."""
    with _faults_of_the_request(serving.tokenizer_manager.server_args):
        return original(serving, *arguments, **keywords)


def refuse_unknown_tokens(serving: Any, request: Any, *_: Any, **__: Any) -> None:
    """Before `OpenAIServingDetokenize._convert_to_internal_request`. Raises ValueError."""
    manager = serving.tokenizer_manager
    if options_of(manager.server_args) is not None:
        given = request.tokens
        for tokens in given if given and isinstance(given[0], list) else [given]:
            _refuse_unknown_tokens("tokens", tokens, manager.model_config.vocab_size)


def answer_refusals(server_args: Any, *_: Any, **__: Any) -> None:
    """Before `_setup_and_run_http_server`: what is refused by an exception is answered with 400, or with 501 if this
    server never does it."""
    if options_of(server_args) is not None:
        from sglang.srt.entrypoints.http_server import app

        add_answers(app)


def add_answers(app: Any) -> None:
    """To SGLang's app, before it answers for the first time."""
    from fastapi.responses import JSONResponse

    def answering(status: int, routes: tuple[str, ...] | None, words: str = "") -> Callable[[Any, Exception], Any]:
        async def answer(request: Any, error: Exception) -> Any:
            if routes is not None and request.url.path not in routes:
                raise error
            message = f"{words}{type(error).__name__}: {error}" if words else str(error)
            return JSONResponse({"error": {"message": message}}, status_code=status)

        return answer

    app.add_exception_handler(Unsupported, answering(501, None))
    app.add_exception_handler(InvalidInput, answering(400, None))
    app.add_exception_handler(AssertionError, answering(501, _REPLICA_ROUTES))
    app.add_exception_handler(RuntimeError, answering(400, _RANK_ROUTES))
    for fault in (ValueError, *_FAULTS):
        app.add_exception_handler(fault, answering(400, _READING_ROUTES, "the request cannot be read: "))


async def begin_stream(original: Callable[..., Any], serving: Any, *arguments: Any, **keywords: Any) -> Any:
    """Around the methods of `OllamaServing` that answer with a stream: what refuses the request comes before it."""
    response = await original(serving, *arguments, **keywords)
    if options_of(serving.tokenizer_manager.server_args) is not None:
        pieces = response.body_iterator
        first = await anext(pieces, None)

        async def all_pieces() -> AsyncIterator[Any]:
            if first is not None:
                yield first
            async for piece in pieces:
                yield piece

        response.body_iterator = all_pieces()
    return response


def refuse_unusable_request(manager: Any, obj: Any, input_ids: Any) -> None:
    """Before `TokenizerManager._validate_one_request`: nothing that SGLang gives to the ranks as it is ends one there.

    input_ids: None for a prompt of embeddings. Raises ValueError.
    """
    if options_of(manager.server_args) is None:
        return
    vocabulary = manager.model_config.vocab_size
    if input_ids is not None:
        _refuse_unusable_prompt(input_ids, vocabulary)
    if manager.disaggregation_mode.value != "null" and getattr(obj, "bootstrap_room", 0) is None:
        raise ValueError("bootstrap_room: it comes from the router; ask that, and not an instance")
    parameters = obj.sampling_params
    if (parameters.get("beam_width") or 1) > 1:
        raise ValueError("beam_width: there is no beam search with --ascend-moe")
    if (parameters.get("top_k") or 0) > MOST_TOP_K:
        raise ValueError(f"top_k: {parameters['top_k']} is more than {MOST_TOP_K}")
    refuse_unverifiable(manager.server_args, {**(manager.preferred_sampling_params or {}), **parameters})
    if getattr(obj, "return_logprob", False):
        if obj.logprob_start_len < -1:
            raise ValueError(f"logprob_start_len: {obj.logprob_start_len} is no place in the prompt, nor -1")
        if not 0 <= obj.top_logprobs_num <= vocabulary:
            raise ValueError(f"top_logprobs_num: {obj.top_logprobs_num} of the model's {vocabulary} tokens")
    if isinstance(getattr(obj, "positional_embed_overrides", None), list | dict | str | int | float):
        raise ValueError("positional_embed_overrides: they cannot be given over HTTP")


def _refuse_unusable_prompt(input_ids: Any, vocabulary: int) -> None:
    if not input_ids:
        raise ValueError("the prompt is empty")
    _refuse_unknown_tokens("input_ids", input_ids, vocabulary)


def _refuse_unknown_tokens(name: str, tokens: Any, vocabulary: int) -> None:
    for position, token in enumerate(tokens):
        if not (isinstance(token, int) and 0 <= token < vocabulary):
            raise ValueError(
                f"{name}: {token!r} at position {position} is no token of the model, which has {vocabulary}"
            )
