"""The checks of a running deployment, each of which gives one finding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from sglang_ascend_moe.launch.comparison import Answer, Tolerance, compare
from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient, Reply, RequestFailed

ABORTS = 4
# Long enough that a request is still running when its client leaves.
ABORTED_TOKENS = 256


class CheckFinding(NamedTuple):
    """What a check found: a summary in numbers, and what is wrong (nothing if `faults` is empty)."""

    name: str
    summary: str
    faults: list[str]


class Examination:
    """Asks `prompts` through `client` and compares with `expected` by the rule of `launch.comparison`."""

    def __init__(
        self,
        client: GenerateClient,
        prompts: list[str],
        expected: list[Answer],
        tolerance: Tolerance,
        concurrent: int,
    ) -> None:
        self._client = client
        self._prompts = prompts
        self._expected = expected
        self._tolerance = tolerance
        self._concurrent = concurrent
        self._new_tokens = len(expected[0].tokens)

    def findings(self) -> Iterator[CheckFinding]:
        """Runs the checks one after the other."""
        numbers = list(range(len(self._prompts)))
        yield self._compared("one after the other", self._one_by_one(numbers, stream=False))
        again = self._one_by_one(numbers, stream=False)
        yield self._compared("the same again, from the prefix cache", again)
        yield self._compared("streamed", self._one_by_one(numbers, stream=True), streamed=True)
        yield self._compared(f"{self._concurrent} at a time", self._together(numbers, stream=False))
        yield self._compared(f"{self._concurrent} streams at a time", self._together(numbers, stream=True))
        yield self._aborts()
        yield self._compared("after the aborted ones", self._one_by_one(numbers[:4], stream=False))

    def _ask(self, number: int, *, stream: bool) -> Reply | str:
        """The reply, or what went wrong."""
        try:
            return self._client.ask(self._prompts[number], self._new_tokens, stream=stream)
        except RequestFailed as error:
            return str(error)

    def _one_by_one(self, numbers: list[int], *, stream: bool) -> dict[int, Reply | str]:
        return {number: self._ask(number, stream=stream) for number in numbers}

    def _together(self, numbers: list[int], *, stream: bool) -> dict[int, Reply | str]:
        ask: Callable[[int], Reply | str] = lambda number: self._ask(number, stream=stream)  # noqa: E731
        with ThreadPoolExecutor(self._concurrent) as pool:
            return dict(zip(numbers, pool.map(ask, numbers), strict=True))

    def _compared(self, name: str, replies: dict[int, Reply | str], *, streamed: bool = False) -> CheckFinding:
        faults, good, close, equal, moved = [], [], 0, 0, 0.0
        for number, reply in replies.items():
            if isinstance(reply, str):
                faults.append(f"prompt {number}: {reply}")
                continue
            good.append(reply)
            outcome = compare(self._expected[number], reply.answer, self._tolerance)
            equal += outcome.equal_tokens
            close += outcome.close_call is not None
            moved = max(moved, outcome.logprob_difference)
            if outcome.fault:
                faults.append(f"prompt {number}, {reply.prompt_tokens} tokens: {outcome.fault}")
            if streamed and reply.pieces < 2:
                faults.append(f"prompt {number}: streamed, but its answer came in one piece")
        summary = f"{len(good)} of {len(replies)} answered"
        if good:
            lengths = [reply.prompt_tokens for reply in good]
            cached = sum(reply.cached_tokens for reply in good)
            summary += (
                f", prompts of {min(lengths)} to {max(lengths)} tokens, {equal} tokens equal, {close} close calls,"
                f" logprobs moved by at most {moved:.3g}, {cached} prompt tokens from caches"
            )
        return CheckFinding(name, summary, faults)

    def _aborts(self) -> CheckFinding:
        """Clients that leave after the first piece of a long answer."""
        faults = []
        for number in range(ABORTS):
            pieces = self._client.pieces(self._prompts[-1 - number], ABORTED_TOKENS, stream=True)
            try:
                next(pieces)
            except RequestFailed as error:
                faults.append(f"request {number}: {error}")
            finally:
                pieces.close()
        return CheckFinding("aborted", f"{ABORTS} clients left after the first token", faults)
