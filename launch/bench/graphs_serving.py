"""`ascend-moe bench graphs` over HTTP: time per output token of servers with and without graphs, asked in turn."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from sglang_ascend_moe.launch.bench.serving_client import ClientFailed
from sglang_ascend_moe.launch.servers.server_process import ServerProcess
from sglang_ascend_moe.serving.http_client import PIECE_BYTES, answered

if TYPE_CHECKING:
    from requests import Response

CONCURRENCIES = (1, 4)
OUTPUT_TOKENS = 48
COMPARED = 4
"""Requests of which tokens and logprobs are compared, asked one after the other."""
READY_SECONDS = 600.0
ANSWER_SECONDS = 120.0


class Served(NamedTuple):
    """What one server did. tpot_ms: by concurrency, median over the requests of the milliseconds between two tokens.
    answers: tokens and logprobs of the compared requests."""

    tpot_ms: dict[int, float]
    answers: list[Any]


def serve_and_ask(flags: list[str], log: Path, prompts: list[list[int]]) -> Served:
    """Starts a server with `flags`, asks it `prompts` (token ids) with each concurrency, and ends it.

    Raises `ServerFailed`, `ClientFailed` for an answer that is cut short, `OSError` for one that does not come.
    """
    with ServerProcess(flags, log) as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        # The first batches of each size are slower.
        for concurrency in CONCURRENCIES:
            _tpot_ms(server.url, prompts[:concurrency], concurrency)
        times = {concurrency: _tpot_ms(server.url, prompts, concurrency) for concurrency in CONCURRENCIES}
        return Served(times, [_answer(server.url, prompt) for prompt in prompts[:COMPARED]])


def random_prompts(requests: int, tokens: int, vocabulary: int) -> list[list[int]]:
    """`requests` prompts of `tokens` token ids, the same ones each time."""
    drawn = random.Random(0)
    return [[drawn.randrange(10, vocabulary) for _ in range(tokens)] for _ in range(requests)]


def _tpot_ms(url: str, prompts: list[list[int]], concurrency: int) -> float:
    """Median over the requests of the mean time between its tokens; `concurrency` are under way at a time."""
    with ThreadPoolExecutor(concurrency) as threads:
        return median(threads.map(lambda prompt: _streamed_ms(url, prompt), prompts))


def _streamed_ms(url: str, prompt: list[int]) -> float:
    first = last = time.perf_counter()
    tokens = at_first = 0
    with _ask(url, prompt, stream=True) as answer:
        for line in answer.iter_lines(PIECE_BYTES):
            if not line.startswith(b"data: {"):
                continue
            last = time.perf_counter()
            tokens = json.loads(line[len(b"data: ") :])["meta_info"]["completion_tokens"]
            if not at_first:
                first, at_first = last, tokens
    if tokens <= at_first:
        raise ClientFailed(f"a server sent {tokens} tokens of {OUTPUT_TOKENS}")
    return (last - first) / (tokens - at_first) * 1e3


def _answer(url: str, prompt: list[int]) -> Any:
    with _ask(url, prompt, return_logprob=True) as answer:
        return answer.json()["meta_info"]["output_token_logprobs"]


@contextmanager
def _ask(url: str, prompt: list[int], **settings: Any) -> Iterator[Response]:
    sampling = {"max_new_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": prompt, "sampling_params": sampling, **settings}
    with answered("POST", f"{url}/generate", body=body, timeout=ANSWER_SECONDS) as answer:
        answer.raise_for_status()
        yield answer
