"""Greedy requests to the OpenAI-style routes of an SGLang server, with the token ids and logprobs of the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sglang_ascend_moe.launch.comparison import Answer, Candidate
from sglang_ascend_moe.serving.http_client import answered

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CANDIDATES = 5
REQUEST_SECONDS = 120.0


class Reply(NamedTuple):
    """The text of an answer and its tokens."""

    text: str
    answer: Answer


class OpenAIClient:
    """Talks to one server. The routes name candidates by their text; `tokenizer` turns it back into ids."""

    def __init__(self, url: str, model: str, tokenizer: Tokenizer) -> None:
        self._url = url
        self._model = model
        self._ids = {
            tokenizer.decode([token], skip_special_tokens=False): token for token in range(tokenizer.get_vocab_size())
        }

    def complete(self, prompt: str, new_tokens: int) -> Reply:
        """`/v1/completions`: continue `prompt` by `new_tokens` tokens."""
        choice = self._ask("/v1/completions", prompt=prompt, max_tokens=new_tokens, logprobs=CANDIDATES)
        positions = [list(position.items()) for position in choice["logprobs"]["top_logprobs"]]
        return Reply(choice["text"], self._answer(choice["token_ids"], positions))

    def chat(self, question: str, new_tokens: int) -> Reply:
        """`/v1/chat/completions`: answer the user's `question` with `new_tokens` tokens."""
        messages = [{"role": "user", "content": question}]
        options = {"max_tokens": new_tokens, "logprobs": True, "top_logprobs": CANDIDATES}
        choice = self._ask("/v1/chat/completions", messages=messages, **options)
        positions = [
            [(candidate["token"], candidate["logprob"]) for candidate in position["top_logprobs"]]
            for position in choice["logprobs"]["content"]
        ]
        return Reply(choice["message"]["content"], self._answer(choice["response_token_ids"], positions))

    def _ask(self, route: str, **body: Any) -> dict[str, Any]:
        """Post a greedy request and return its only choice."""
        body |= {"model": self._model, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        with answered("POST", self._url + route, body=body, timeout=REQUEST_SECONDS) as answer:
            answer.raise_for_status()
            return answer.json()["choices"][0]

    def _answer(self, tokens: list[int], positions: list[list[tuple[str, float]]]) -> Answer:
        candidates = [
            sorted((Candidate(self._ids[text], logprob) for text, logprob in position), key=lambda c: -c.logprob)
            for position in positions
        ]
        return Answer(tokens, candidates)
