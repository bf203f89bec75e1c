"""The answers of one server, and one deployment per session."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.disagg import questions
from sglang_ascend_moe.launch.disagg.questions import Recorded
from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes
from sglang_ascend_moe.launch.tiny_model.tokenizer import build_tokenizer
from tests.launch.disagg.deployed import CHUNK_TOKENS, MAX_RUNNING_REQUESTS, OPTIONS, Deployed, description
from tests.serving.configurations import ours
from tests.serving.engines import ForkServer
from tests.serving.prompts import NEW_TOKENS, chosen_prompts

CHECK_TOKENS = 3
CHECK_LONGEST = 700


class Expected(NamedTuple):
    """Prompts of 1 to 700 tokens and what one tp2/ep2 server answers: cold, and with their prefixes cached.

    recorded: its answers to what `check` asks, with CHECK_TOKENS tokens and CHECK_LONGEST characters.
    """

    prompts: list[list[int]]
    cold: list[Answer]
    cached: list[Answer]
    recorded: Recorded


@pytest.fixture(scope="session")
def expected(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Expected:
    prompts = chosen_prompts()
    asked = questions.prompts(CHECK_LONGEST)
    tokenizer = build_tokenizer(TinySizes().vocab)
    arguments = {name.replace("-", "_"): value for name, value in OPTIONS.items() if name != "dtype"}
    config = ours(
        checkpoint,
        OPTIONS["dtype"],
        chunked_prefill_size=CHUNK_TOKENS,
        **{**arguments, "max_running_requests": MAX_RUNNING_REQUESTS},
    )
    with ForkServer(tmp_path_factory.mktemp("logs")) as fork_server, fork_server.start(config) as engine:
        cold = engine.generate_with_cache(prompts, NEW_TOKENS)
        cached = engine.generate_with_cache(prompts, NEW_TOKENS)
        recorded = engine.generate([tokenizer.encode(text).ids for text in asked], CHECK_TOKENS)
    assert sum(cached.cached_tokens) > sum(cold.cached_tokens)
    return Expected(
        prompts, cold.answers, cached.answers, Recorded(prompts=asked, new_tokens=CHECK_TOKENS, answers=recorded)
    )


@pytest.fixture(scope="session")
def deployment(checkpoint: Path, expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """One prefill server, one decode server and the router in Rust; `expected` is asked for first, to end before."""
    del expected
    with Deployed(description(checkpoint), tmp_path_factory.mktemp("deployment")) as deployed:
        deployed.wait_until_serving()
        yield deployed
