"""The rule by which two greedy continuations of one prompt are the same.

Two correct implementations add the same numbers in another order and round to bf16 in other places, so a logprob may
move a little: by `LOGPROB_TOLERANCE` at most. A greedy token may then differ only where its logprob lies closer to the
best one than twice that. Such a *close call* ends the comparison of tokens, because what follows continues another
text; it is counted and reported, never passed over silently.
"""

from typing import NamedTuple

import msgspec

LOGPROB_TOLERANCE = 0.25
CLOSE_CALL_MARGIN = 2 * LOGPROB_TOLERANCE


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


def compare(expected: Answer, found: Answer) -> Comparison:
    """Compare `found` with `expected` under the rule above, token by token."""
    largest = 0.0
    for position, (token, other) in enumerate(zip(expected.tokens, found.tokens, strict=False)):
        difference = _logprob_difference(expected.candidates[position], found.candidates[position])
        largest = max(largest, difference)
        behind = expected.behind_best(position, other)
        if other != token and behind >= CLOSE_CALL_MARGIN:
            fault = f"token {position} is {other} instead of {token}, although its logprob is lower by {behind:.3f}"
            return Comparison(position, None, largest, fault)
        if difference > LOGPROB_TOLERANCE:
            fault = f"logprobs of token {position} differ by {difference:.3f}, more than {LOGPROB_TOLERANCE}"
            return Comparison(position, None, largest, fault)
        if other != token:
            return Comparison(position, position, largest, "")
    if len(expected.tokens) != len(found.tokens):
        fault = f"{len(found.tokens)} tokens instead of {len(expected.tokens)}"
        return Comparison(min(len(expected.tokens), len(found.tokens)), None, largest, fault)
    return Comparison(len(expected.tokens), None, largest, "")


def _logprob_difference(expected: list[Candidate], found: list[Candidate]) -> float:
    """Largest difference between the logprobs of the two best expected candidates and those of the same tokens found.

    A token that is missing among those found counts with the logprob of the last of them, which is an upper bound.
    """
    logprobs = {candidate.token: candidate.logprob for candidate in found}
    return max(abs(c.logprob - logprobs.get(c.token, found[-1].logprob)) for c in expected[:2])
