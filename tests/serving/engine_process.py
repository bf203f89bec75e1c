"""The process of one engine under test: builds `sglang.Engine` with forked schedulers and answers requests."""

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from sglang_ascend_moe.launch.comparison import Answer, Candidate
from tests.serving import patches
from tests.serving.messages import Generate, Generated, Ready, Refused, StartEngine

TOP_LOGPROBS = 5


def run_engine(request: StartEngine, channel: Connection) -> None:
    """Build the engine, answer every `Generate` on `channel`, and shut down when the peer closes it."""
    os.environ.update(request.environment)
    keep_fork()
    for name in request.patches:
        getattr(patches, name)()
    from sglang.srt.entrypoints.engine import Engine

    try:
        engine = Engine(**request.arguments)
    except Exception as error:
        channel.send_bytes(msgspec.msgpack.encode(Refused(f"{type(error).__name__}: {error}")))
        raise
    with engine:
        channel.send_bytes(msgspec.msgpack.encode(Ready()))
        while True:
            try:
                payload = channel.recv_bytes()
            except EOFError:
                return
            generated = generate(engine, msgspec.msgpack.decode(payload, type=Generate))
            channel.send_bytes(msgspec.msgpack.encode(generated))


def keep_fork() -> None:
    """Make the engine fork its processes: SGLang sets the start method to spawn while it launches them."""
    multiprocessing.set_start_method("fork", force=True)
    multiprocessing.set_start_method = lambda *_args, **_kwargs: None


def generate(engine: Any, request: Generate) -> Generated:
    """Greedy answers with the likeliest candidates of every position."""
    options = {
        "sampling_params": {"temperature": 0.0, "max_new_tokens": request.new_tokens, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": TOP_LOGPROBS,
    }
    if request.together:
        results = engine.generate(input_ids=request.prompts, **options)
    else:
        results = [engine.generate(input_ids=prompt, **options) for prompt in request.prompts]
    return Generated(
        answers=[answer_of(result) for result in results],
        cached_tokens=[result["meta_info"]["cached_tokens"] for result in results],
    )


def answer_of(result: dict[str, Any]) -> Answer:
    """An `Answer` from what SGLang returns for one prompt."""
    return Answer(
        tokens=result["output_ids"],
        candidates=[
            [Candidate(token, logprob) for logprob, token, _text in position]
            for position in result["meta_info"]["output_top_logprobs"]
        ],
    )
