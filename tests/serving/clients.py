"""Clients of a server: greedy, many at a time, leaving early, and sending what no server wants."""

import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import requests

ANSWER_SECONDS = 120.0


class Answered(NamedTuple):
    """What a server answered: the status, and the tokens of a whole answer (None otherwise)."""

    status: int
    tokens: list[int] | None


def body_of(prompt: list[int], new_tokens: int, **more: Any) -> dict[str, Any]:
    """A greedy request."""
    sampling = {"temperature": 0, "max_new_tokens": new_tokens, "ignore_eos": True}
    return {"input_ids": prompt, "sampling_params": sampling, **more}


def post(url: str, data: bytes, path: str = "/generate") -> tuple[int, bytes]:
    """Status and body of the answer. Raises OSError if there is none."""
    answer = requests.post(url + path, data, headers={"Content-Type": "application/json"}, timeout=ANSWER_SECONDS)
    return answer.status_code, answer.content


def ask(url: str, prompt: list[int], new_tokens: int) -> Answered:
    """A whole answer. Raises OSError if there is none."""
    status, said = post(url, json.dumps(body_of(prompt, new_tokens)).encode())
    if status != 200:
        return Answered(status, None)
    answer = json.loads(said)
    if answer["meta_info"]["finish_reason"]["type"] != "length":
        return Answered(status, None)
    return Answered(status, answer["output_ids"])


def leave_early(url: str, prompt: list[int], new_tokens: int, pieces: int) -> None:
    """Ask for a stream and hang up after so many reads of it."""
    address = urlsplit(url)
    data = json.dumps(body_of(prompt, new_tokens, stream=True)).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), ANSWER_SECONDS) as connection:
        connection.sendall(head.encode() + data)
        for _ in range(pieces):
            connection.recv(4096)


def answer_all_kinds(url: str, prompts: list[list[int]]) -> None:
    """Requests of all kinds at the same time: sampled, bound to a grammar, cached, in chunks, and left early."""
    kinds = [
        {},
        {"temperature": 0.9, "top_p": 0.8, "sampling_seed": 3},
        {"temperature": 1.2, "top_k": 20, "n": 2},
        {"temperature": 0.7, "min_p": 0.1, "frequency_penalty": 0.5},
        {"json_schema": '{"type": "object", "properties": {"a": {"type": "integer"}}}'},
        {"temperature": 0.8, "regex": "[a-z]{1,40}"},
    ]
    bodies = [body_of(prompt, 1 + place * 3 % 40) for place, prompt in enumerate(prompts * len(kinds))]
    for place, body in enumerate(bodies):
        body["sampling_params"] |= kinds[place // len(prompts)]
    with ThreadPoolExecutor(8) as pool:
        leaving = [pool.submit(leave_early, url, prompt, 200, pieces) for pieces, prompt in enumerate(prompts)]
        statuses = set(pool.map(lambda body: post(url, json.dumps(body).encode())[0], bodies))
    assert statuses == {200}
    assert [left.result() for left in leaving] == [None] * len(prompts)


class Traffic:
    """Clients that ask for the prompts again and again until the server is gone. A context manager."""

    def __init__(self, url: str, prompts: list[list[int]], new_tokens: int, clients: int = 6) -> None:
        self.answers: list[tuple[int, Answered]] = []
        """Index of the prompt, and what was answered."""
        self._url = url
        self._prompts = prompts
        self._new_tokens = new_tokens
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(place,)) for place in range(clients)]
        self._first = threading.Event()

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_for_answer(self) -> None:
        """Return when an answer has come."""
        if not self._first.wait(ANSWER_SECONDS):
            raise TimeoutError("no answer came")

    def _ask(self, place: int) -> None:
        while not self._over.is_set():
            place = (place + 1) % len(self._prompts)
            try:
                answered = ask(self._url, self._prompts[place], self._new_tokens)
            except OSError:
                if self._first.is_set():
                    return
                continue
            self.answers.append((place, answered))
            self._first.set()


def mixed_traffic(
    url: str, prompts: list[list[int]], expected: list[list[int]], requests: int, seed: int = 0
) -> Counter:
    """`requests` requests of mixed lengths, 16 at a time, a quarter of which leave early; how they ended, counted.

    Answers to known prompts are compared with `expected` as far as they go.
    """
    chance = random.Random(seed)
    plans = [
        (chance.randrange(len(prompts)), chance.randint(1, len(expected[0])), chance.random()) for _ in range(requests)
    ]

    def run(plan: tuple[int, int, float]) -> str:
        place, new_tokens, leaves = plan
        if leaves < 0.25:
            leave_early(url, prompts[place], 200, int(leaves * 20))
            return "left"
        answered = ask(url, prompts[place], new_tokens)
        if answered.tokens is None:
            return f"status {answered.status}"
        return "right" if answered.tokens == expected[place][:new_tokens] else "wrong"

    with ThreadPoolExecutor(16) as pool:
        return Counter(pool.map(run, plans))


def malformed_requests(prompt: list[int]) -> Iterator[tuple[str, bytes]]:
    """Bodies that no server should take, by name."""
    good = body_of(prompt, 4)
    yield "nothing", b""
    yield "no JSON", b"{"
    yield "no text", b"\xff\xfe\x00"
    yield "a list", b"[]"
    yield "deeply nested", b"[" * 50_000
    # A server answers nobody else while it reads a text, and a router gives it up after ten seconds.
    yield "512 KiB of text", json.dumps({"text": "a " * 2**18}).encode()
    yield "a prompt past the context", json.dumps({**good, "input_ids": prompt * (10**6 // len(prompt))}).encode()
    for name, fields in MALFORMED.items():
        yield name, json.dumps({**good, **fields}).encode()
    for name, parameters in MALFORMED_PARAMETERS.items():
        yield name, json.dumps({**good, "sampling_params": {**good["sampling_params"], **parameters}}).encode()


def malformed_texts() -> Iterator[tuple[str, tuple[str, bytes]]]:
    """Route and body of requests about texts and chats that no server should take, by name."""
    hello = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    for name, (route, body) in {
        "values that the chat template does not take": (
            "/v1/chat/completions", {**hello, "chat_template_kwargs": {"messages": [1]}}
        ),
        "tokens of a chat of such values": ("/v1/tokenize", {**hello, "chat_template_kwargs": {"messages": [1]}}),
        "the text of a token past the vocabulary": ("/v1/detokenize", {"tokens": [1, 10**9]}),
        "the texts of negative tokens": ("/v1/detokenize", {"tokens": [[1], [-1]]}),
        "calls found by an unknown parser": ("/parse_function_call", {"text": "a", "tool_call_parser": "surprise"}),
        "calls found by no parser": ("/parse_function_call", {"text": "a"}),
        "reasoning found by an unknown parser": ("/separate_reasoning", {"text": "a", "reasoning_parser": "surprise"}),
    }.items():  # fmt: skip
        yield name, (route, json.dumps({"model": "default", **body}).encode())


MALFORMED: dict[str, dict[str, Any]] = {
    "no prompt": {"input_ids": None},
    "an empty text": {"input_ids": None, "text": ""},
    "no ids": {"input_ids": []},
    "a prompt without ids among others": {"input_ids": [[], [1]]},
    "ids that are text": {"input_ids": ["a"]},
    "negative ids": {"input_ids": [-1, 5]},
    "ids past the vocabulary": {"input_ids": [10**9]},
    "ids past the vocabulary in a batch": {"input_ids": [[1], [10**9]]},
    "ids past 64 bits": {"input_ids": [2**70]},
    "parameters in a list": {"sampling_params": [{}, {}]},
    "no parameters in a list": {"sampling_params": []},
    "two names for one prompt": {"rid": ["a", "b"]},
    "an unknown part of a session": {"session_params": {"surprise": 1}},
    "logprobs from before the prompt": {"return_logprob": True, "logprob_start_len": -5},
    "logprobs from behind the prompt": {"return_logprob": True, "logprob_start_len": 10**9},
    "more logprobs than tokens": {"return_logprob": True, "top_logprobs_num": 10**9},
    "fewer logprobs than none": {"return_logprob": True, "top_logprobs_num": -1},
    "embeddings in place of some": {"positional_embed_overrides": [1]},
}
"""Fields in place of those of a good request, by name."""

MALFORMED_PARAMETERS: dict[str, dict[str, Any]] = {
    "a negative number of tokens": {"max_new_tokens": -1},
    "more tokens than 64 bits count": {"max_new_tokens": 2**70},
    "a temperature that is text": {"temperature": "hot"},
    "an unknown parameter": {"surprise": 1},
    "top_k past 32 bits": {"top_k": 2**40, "temperature": 1},
    "beam search": {"beam_width": 4},
    "a billion answers": {"n": 10**9},
    "no answers": {"n": 0},
    "a broken pattern to stop at": {"stop_regex": "("},
    "a broken pattern": {"regex": "("},
    "a broken schema": {"json_schema": "{"},
}
"""Sampling parameters that are added to those of a good request, by name."""
