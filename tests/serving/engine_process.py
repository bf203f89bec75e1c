"""The process of one engine under test: builds `sglang.Engine` with forked schedulers and answers requests."""

import contextlib
import os
import sys
import tempfile
from multiprocessing.connection import Connection
from typing import Any

import msgspec

from sglang_ascend_moe.launch.comparison import Answer, Candidate
from sglang_ascend_moe.serving.worker.live_state import STATE_KEY, RankState
from tests.serving import patches
from tests.serving.engine_messages import (
    Call,
    Called,
    Continue,
    Generate,
    Generated,
    Inspect,
    Inspected,
    Ready,
    Refused,
    StartEngine,
)

TOP_LOGPROBS = 5


def run_engine(request: StartEngine, channel: Connection) -> None:
    """Build the engine, answer every request on `channel`, and shut down when the peer closes it."""
    os.environ.update(request.environment)
    with contextlib.ExitStack() as stack:
        stack.callback(remove_metrics)
        if not request.arguments.get("ascend_moe"):
            # Stock SGLang leaves its sockets behind.
            tempfile.tempdir = os.environ["TMPDIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="stock-"))
        serve_engine(request, channel)


def remove_metrics() -> None:
    """Remove the folder of SGLang's metrics, which goes where Python ends as usual; a forked process does not."""
    folder = getattr(sys.modules["sglang.srt.utils.common"], "prometheus_multiproc_dir", None)
    if folder is not None:
        folder.cleanup()


def serve_engine(request: StartEngine, channel: Connection) -> None:
    """As `run_engine`, in the temporary directory that is set."""
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
            match msgspec.msgpack.decode(payload, type=Generate | Continue | Inspect | Call):
                case Generate() as generation:
                    answer = generate(engine, generation)
                case Continue(texts, images, new_tokens):
                    results = engine.generate(prompt=texts, image_data=images, **greedy(new_tokens))
                    answer = generated(results)
                case Inspect():
                    answer = inspect(engine)
                case Call(method):
                    getattr(engine, method)()
                    answer = Called()
            channel.send_bytes(msgspec.msgpack.encode(answer))


def generate(engine: Any, request: Generate) -> Generated:
    """Answers with the likeliest candidates of every position."""
    options = greedy(request.new_tokens)
    options["sampling_params"] |= request.sampling
    if request.together:
        results = engine.generate(input_ids=request.prompts, **options)
    else:
        results = [engine.generate(input_ids=prompt, **options) for prompt in request.prompts]
    return generated(results)


def greedy(new_tokens: int) -> dict[str, Any]:
    """Arguments of `Engine.generate`."""
    return {
        "sampling_params": {"temperature": 0.0, "max_new_tokens": new_tokens, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": TOP_LOGPROBS,
    }


def generated(results: list[dict[str, Any]]) -> Generated:
    """What SGLang returned."""
    return Generated(
        answers=[answer_of(result) for result in results],
        cached_tokens=[result["meta_info"]["cached_tokens"] for result in results],
        accepted=[result["meta_info"].get("spec_accept_length", 1.0) for result in results],
    )


def inspect(engine: Any) -> Inspected:
    """The internal states of the schedulers, and the metrics that all processes have written."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    states = [state[STATE_KEY] for state in engine.get_server_info()["internal_states"]]
    return Inspected(msgspec.convert(states, list[list[RankState]]), generate_latest(registry).decode())


def answer_of(result: dict[str, Any]) -> Answer:
    """An `Answer` from what SGLang returns for one prompt."""
    return Answer(
        tokens=result["output_ids"],
        candidates=[
            [Candidate(token, logprob) for logprob, token, _text in position]
            for position in result["meta_info"]["output_top_logprobs"]
        ],
    )
