"""The rule by which two greedy continuations of one prompt are the same.

Two correct implementations add the same numbers in another order and round in other places, so a logprob may move a
little. A greedy token may therefore differ where its logprob lies close enough to the best one. Such a *close call*
ends the comparison of tokens, because what follows continues another text; it is counted and reported, never passed
over silently.
"""

import math
from typing import NamedTuple

import msgspec


class Tolerance(NamedTuple):
    """How far logprobs may move, and below which distance from the best logprob another token may win.

    far: logprobs that lie further below the best one are compared as if they lay there. What is as good as impossible
    may move more: where two experts are nearly equally likely, rounding chooses another one.
    """

    logprob: float
    margin: float
    far: float = math.inf


# Measured between stock SGLang on one rank and two or four ranks, 1440 tokens each, tiny Qwen3-MoE. In bfloat16 logits
# of about 12 are multiples of 1/16; the largest difference of a logprob was 0.42, and the largest margin at which a
# token changed 0.38 (nine of ten changed at 1/16 or less). In float32 the largest difference was 0.000012, and no token
# changed.
TOLERANCES = {
    "bfloat16": Tolerance(logprob=0.5, margin=0.5, far=4.0),
    "float32": Tolerance(logprob=0.001, margin=0.001),
}


class Candidate(msgspec.Struct, frozen=True, array_like=True):
    """One of the likeliest tokens of a position."""

    token: int
    logprob: float


class Answer(msgspec.Struct, frozen=True):
    """A greedy continuation: its token ids, and for each position the likeliest candidates, best first."""

    tokens: list[int]
    candidates: list[list[Candidate]]

    def behind_best(self, position: int, token: int) -> float:
        """How far `token`'s logprob lies below the best one; infinite if it is not among the candidates."""
        candidates = self.candidates[position]
        return next((candidates[0].logprob - c.logprob for c in candidates if c.token == token), float("inf"))

    def margin(self, position: int) -> float:
        """How far the second best candidate's logprob lies below the best one."""
        best, second = self.candidates[position][:2]
        return best.logprob - second.logprob

    def after(self, position: int) -> "Answer":
        """The same answer without its first `position` tokens."""
        return Answer(self.tokens[position:], self.candidates[position:])


class Comparison(NamedTuple):
    """The outcome for one prompt.

    `equal_tokens` counts the tokens before the first difference. `close_call` is the position of a difference that
    the rule allows, None if there is none. `logprob_difference` is the largest among the compared logprobs. `fault`
    says what breaks the rule; empty if nothing does.
    """

    equal_tokens: int
    close_call: int | None
    logprob_difference: float
    fault: str


def compare(expected: Answer, found: Answer, tolerance: Tolerance) -> Comparison:
    """Compare `found` with `expected` under the rule above, token by token."""
    largest = 0.0
    for position, (token, other) in enumerate(zip(expected.tokens, found.tokens, strict=False)):
        difference = logprob_difference(expected.candidates[position], found.candidates[position], tolerance.far)
        largest = max(largest, difference)
        behind = expected.behind_best(position, other)
        if other != token and behind > tolerance.margin:
            fault = f"token {position} is {other} instead of {token}, although its logprob is lower by {behind:.3f}"
            return Comparison(position, None, largest, fault)
        if difference > tolerance.logprob:
            fault = f"logprobs of token {position} differ by {difference:.3f}, more than {tolerance.logprob}"
            return Comparison(position, None, largest, fault)
        if other != token:
            return Comparison(position, position, largest, "")
    if len(expected.tokens) != len(found.tokens):
        fault = f"{len(found.tokens)} tokens instead of {len(expected.tokens)}"
        return Comparison(min(len(expected.tokens), len(found.tokens)), None, largest, fault)
    return Comparison(len(expected.tokens), None, largest, "")


def logprob_difference(expected: list[Candidate], found: list[Candidate], far: float = math.inf) -> float:
    """Largest difference between the logprobs of the two best expected candidates and those of the same tokens found.

    A token that is missing among those found counts with the logprob of the last of them, which is an upper bound.
    far: see `Tolerance`.
    """
    logprobs = {candidate.token: candidate.logprob for candidate in found}
    least, found_least = expected[0].logprob - far, found[0].logprob - far
    return max(
        abs(max(c.logprob, least) - max(logprobs.get(c.token, found[-1].logprob), found_least)) for c in expected[:2]
    )
