"""A request that would end a rank, or that SGLang answers with 500, is refused with a ValueError, which means 400."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ascend_moe.serving.launcher import request_checks
from sglang_ascend_moe.serving.options import Options, attach

WITHOUT = SimpleNamespace()
WITH = SimpleNamespace(speculative_algorithm=None)
attach(WITH, Options())


def manager(server_args: object = WITH, role: str = "null") -> SimpleNamespace:
    mode = SimpleNamespace(value=role)
    return SimpleNamespace(
        model_config=SimpleNamespace(vocab_size=100),
        server_args=server_args,
        disaggregation_mode=mode,
        preferred_sampling_params=None,
    )


def request(**fields: Any) -> SimpleNamespace:
    usual = {"sampling_params": {}, "rid": "a", "is_single": True}
    return SimpleNamespace(**usual | {"return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": 0} | fields)


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        pytest.param([0, 99], {}, id="first and last token"),
        pytest.param(None, {}, id="embeddings"),
        pytest.param([1], {"sampling_params": {"top_k": 2**31 - 1, "beam_width": 1}}, id="largest top_k"),
        pytest.param([1], {"sampling_params": {"top_k": None, "beam_width": None}}, id="null"),
        pytest.param([1], {"logprob_start_len": 0, "top_logprobs_num": 100}, id="logprobs of everything"),
        pytest.param([1], {"positional_embed_overrides": None}, id="no embeddings"),
    ],
)
def test_what_ranks_can_take_passes(prompt, fields):
    request_checks.refuse_unusable_request(manager(), request(**fields), prompt)


@pytest.mark.parametrize("token", [-1, 100, 2**70, "a", None, 1.0], ids=str)
def test_an_unknown_token_is_refused_by_its_position(token):
    with pytest.raises(ValueError, match=r"position 1.* 100"):
        request_checks.refuse_unusable_request(manager(), request(), [5, token])


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [
        pytest.param([], {}, "the prompt is empty", id="empty"),
        pytest.param([1], {"sampling_params": {"top_k": 2**31}}, "top_k: 2147483648 is more than", id="top_k"),
        pytest.param([1], {"sampling_params": {"beam_width": 2}}, "there is no beam search", id="beams"),
        pytest.param([1], {"logprob_start_len": -2}, "logprob_start_len: -2 is no place", id="logprob_start_len"),
        pytest.param([1], {"top_logprobs_num": 101}, "top_logprobs_num: 101 of the model's 100", id="many logprobs"),
        pytest.param([1], {"top_logprobs_num": -1}, "top_logprobs_num: -1 of", id="negative logprobs"),
        pytest.param([1], {"positional_embed_overrides": [1]}, "cannot be given over HTTP", id="embeddings"),
    ],
)
def test_what_would_end_a_rank_is_refused(prompt, fields, message):
    with pytest.raises(ValueError, match=message):
        request_checks.refuse_unusable_request(manager(), request(**fields), prompt)
    request_checks.refuse_unusable_request(manager(WITHOUT), request(**fields), prompt)


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_an_instance_is_asked_by_its_router_only(role):
    instance = manager(role=role)
    request_checks.refuse_unusable_request(instance, request(bootstrap_room=0), [1])
    with pytest.raises(ValueError, match="bootstrap_room: it comes from the router"):
        request_checks.refuse_unusable_request(instance, request(bootstrap_room=None), [1])
    request_checks.refuse_unusable_request(manager(WITHOUT, role), request(bootstrap_room=None), [1])


@pytest.fixture
def server_args(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of SGLang's module, which takes long to import: what `args` is set to are the server's arguments."""
    found = SimpleNamespace(args=WITH)
    context = SimpleNamespace(get_server_args=lambda: found.args)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    return found


@pytest.mark.parametrize(
    "parameters", [None, {}, {"n": 1}, {"n": 4096}, [{}, {"n": 2}]], ids=["none", "empty", "one", "most", "a batch"]
)
@pytest.mark.usefixtures("server_args")
def test_requests_of_the_usual_form_are_read_by_sglang(parameters):
    obj = request(sampling_params=parameters, is_single=isinstance(parameters, dict))
    read = []
    request_checks.read_request(read.append, obj)
    assert read == [obj]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"sampling_params": {"n": 4097}}, "n: 4097 answers to one prompt", id="many answers"),
        pytest.param({"sampling_params": {"n": 0}}, "n: 0 answers", id="no answer"),
        pytest.param({"sampling_params": [{}, {"n": 10**9}]}, "n: 1000000000 answers", id="many answers in a batch"),
        pytest.param({"sampling_params": {"n": None}}, "the request cannot be read: TypeError", id="null"),
        pytest.param({"sampling_params": "x"}, "the request cannot be read: AttributeError", id="text"),
        pytest.param({"sampling_params": [{}]}, "lists of them come with a list of prompts", id="a list"),
        pytest.param({"rid": ["a"]}, "lists of them come with a list of prompts", id="a list of names"),
    ],
)
def test_other_forms_are_refused(server_args, fields, message):
    with pytest.raises(ValueError, match=message):
        request_checks.read_request(lambda _: None, request(**fields))
    server_args.args = WITHOUT
    request_checks.read_request(lambda _: None, request(**fields))


def test_one_prompt_has_one_name(server_args):
    request_checks.read_embedding(None, request())
    with pytest.raises(ValueError, match="rid: a list of them"):
        request_checks.read_embedding(None, request(rid=["a"]))
    server_args.args = WITHOUT
    request_checks.read_embedding(None, request(rid=["a"]))


@pytest.mark.parametrize("fault", [TypeError("no str"), re.error("no pattern"), OverflowError("too large")], ids=repr)
def test_what_sglang_cannot_read_is_a_fault_of_the_request(fault):
    def fail(*_: object) -> None:
        raise fault

    with pytest.raises(ValueError, match=f"{type(fault).__name__}: {fault}"):
        request_checks.make_parameters(fail, manager(), "obj")
    with pytest.raises(type(fault)):
        request_checks.make_parameters(fail, manager(WITHOUT), "obj")
    assert request_checks.make_parameters(lambda *given: given[1:], manager(), "obj") == ("obj",)


def serving(server_args: object = WITH) -> SimpleNamespace:
    return SimpleNamespace(tokenizer_manager=manager(server_args))


def test_a_chat_that_its_template_cannot_take_is_a_fault_of_the_request():
    def fail(*_: object) -> None:
        raise TypeError("twice")

    with pytest.raises(ValueError, match="TypeError: twice"):
        request_checks.read_chat(fail, serving(), "request")
    with pytest.raises(TypeError):
        request_checks.read_chat(fail, serving(WITHOUT), "request")
    assert request_checks.read_chat(lambda *given: given[1:], serving(), "request") == ("request",)


@pytest.mark.parametrize("tokens", [[], [0, 99], [[], [0], [99]]], ids=str)
def test_known_tokens_become_text(tokens):
    request_checks.refuse_unknown_tokens(serving(), SimpleNamespace(tokens=tokens))


@pytest.mark.parametrize("tokens", [[0, 100], [[0, -1]], [[], [0, 2**70]]], ids=str)
def test_unknown_tokens_become_no_text(tokens):
    with pytest.raises(ValueError, match=r"tokens.* position 1.* 100"):
        request_checks.refuse_unknown_tokens(serving(), SimpleNamespace(tokens=tokens))
    request_checks.refuse_unknown_tokens(serving(WITHOUT), SimpleNamespace(tokens=tokens))


async def pieces(*said: str | Exception) -> AsyncIterator[str]:
    for piece in said:
        if isinstance(piece, Exception):
            raise piece
        yield piece


@pytest.mark.parametrize("said", [(), ("a",), ("a", "b")], ids=len)
def test_a_stream_is_passed_on_from_its_first_piece(said):
    async def stream(_serving: object) -> SimpleNamespace:
        return SimpleNamespace(body_iterator=pieces(*said))

    async def read() -> list[str]:
        return [piece async for piece in (await request_checks.begin_stream(stream, serving())).body_iterator]

    assert asyncio.run(read()) == list(said)


def test_a_stream_that_is_refused_does_not_begin():
    async def stream(_serving: object) -> SimpleNamespace:
        return SimpleNamespace(body_iterator=pieces(ValueError("too long")))

    with pytest.raises(ValueError, match="too long"):
        asyncio.run(request_checks.begin_stream(stream, serving()))
    asyncio.run(request_checks.begin_stream(stream, serving(WITHOUT)))
