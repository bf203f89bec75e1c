"""Greedy requests to the `/generate` route of a server or router, with token ids, logprobs and prefix-cache hits."""

from __future__ import annotations

import json
import struct
from collections.abc import Generator
from typing import Any, NamedTuple

from sglang_ascend_moe.launch.comparison import Answer, Candidate
from sglang_ascend_moe.serving.http_client import PIECE_BYTES, answered

CANDIDATES = 5
Prompt = str | list[int]


class RequestFailed(Exception):
    """A request got no answer, or another than was asked for."""


class Reply(NamedTuple):
    """An answer. prompt_tokens: of the prompt; cached_tokens: of these from the prefix cache; pieces: it came in."""

    answer: Answer
    prompt_tokens: int
    cached_tokens: int
    pieces: int


class GenerateClient:
    """Talks to one address. Every request has `timeout` seconds between two pieces of its answer."""

    def __init__(self, url: str, *, timeout: float = 120.0, api_key: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        self._api_key = api_key

    def ask(self, prompt: Prompt, new_tokens: int, *, stream: bool = False) -> Reply:
        """Continue `prompt` by `new_tokens` tokens. Raises `RequestFailed`."""
        pieces = list(self.pieces(prompt, new_tokens, stream=stream))
        if not pieces:
            raise RequestFailed(f"{self.url}: an answer without a piece")
        meta = pieces[-1]["meta_info"]
        tokens = [token for _, token, *_ in meta["output_token_logprobs"]]
        if len(tokens) != new_tokens:
            raise RequestFailed(f"{self.url}: {len(tokens)} tokens instead of {new_tokens}")
        candidates = [
            [Candidate(token, as_computed(logprob)) for logprob, token, *_ in position]
            for position in meta["output_top_logprobs"]
        ]
        return Reply(Answer(tokens, candidates), meta["prompt_tokens"], meta.get("cached_tokens") or 0, len(pieces))

    def pieces(self, prompt: Prompt, new_tokens: int, *, stream: bool) -> Generator[dict[str, Any], None, None]:
        """The pieces of the answer as they come, each with everything so far; closing the generator aborts the request.

        Raises `RequestFailed`.
        """
        body = {
            "input_ids" if isinstance(prompt, list) else "text": prompt,
            "sampling_params": {"max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True},
            "return_logprob": True,
            "top_logprobs_num": CANDIDATES,
            "stream": stream,
        }
        asked = answered("POST", f"{self.url}/generate", body=body, timeout=self._timeout, api_key=self._api_key)
        try:
            with asked as answer:
                if not answer.ok:
                    said = answer.content[:300].decode(errors="replace")
                    raise RequestFailed(f"{self.url}: answered {answer.status_code} {answer.reason}: {said}")
                if not stream:
                    yield _piece(answer.content)
                    return
                ended = False
                for line in answer.iter_lines(PIECE_BYTES):
                    data = line.removeprefix(b"data:").strip()
                    if data == b"[DONE]":
                        ended = True
                    elif data:
                        yield _piece(data)
                if not ended:
                    raise RequestFailed(f"{self.url}: the answer broke off")
        except (OSError, ValueError) as error:
            raise RequestFailed(f"{self.url}: the request failed: {error!r}") from error


def as_computed(logprob: float) -> float:
    """The float32 that SGLang computed: the router in Rust changes the last digit of some numbers on their way."""
    (value,) = struct.unpack("f", struct.pack("f", logprob))
    return value


def _piece(data: bytes) -> dict[str, Any]:
    piece = json.loads(data)
    if not isinstance(piece, dict) or "meta_info" not in piece:
        raise RequestFailed(f"not a piece of an answer: {data[:300].decode(errors='replace')}")
    return piece
