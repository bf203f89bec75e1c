"""Whether two numerical formats of one model are as far from float32 as rounding makes them.

A token decided by less than rounding, and an expert chosen by less, change an answer for good: so greedy tokens in
bfloat16 say little of a model with close routers, also on the host. How far logprobs lie from those in float32 says it:
most of these distances are sums of roundings, of which two right implementations have about equally many.
"""

import math

from sglang_ascend_moe.launch.comparison import Answer, logprob_difference

QUANTILES = (0.25, 0.5, 0.75)
"""Those above are of answers in which an expert changed."""

DEVIATIONS = 4
"""Standard deviations by which the share of the distances below one may differ between two samples of the same."""


def distances(exact: list[Answer], found: list[Answer]) -> list[float]:
    """How far logprobs lie from those in float32, of all positions until a token differs; in order of size."""
    measured = []
    for one, other in zip(exact, found, strict=True):
        for position, (token, chosen) in enumerate(zip(one.tokens, other.tokens, strict=True)):
            measured.append(logprob_difference(one.candidates[position], other.candidates[position]))
            if token != chosen:
                break
    return sorted(measured)


def quantile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def farther(found: list[float], known: list[float]) -> list[str]:
    """The quantiles at which `found` are farther from float32 than another sample of `known` would be; both ordered.

    A share q of n distances has the standard deviation sqrt(q(1 - q) / n), and so has that of the other sample.
    """
    said = []
    for share in QUANTILES:
        spread = math.sqrt(share * (1 - share) * (1 / len(found) + 1 / len(known)))
        bound = quantile(known, share + DEVIATIONS * spread)
        if (distance := quantile(found, share)) > bound:
            said.append(f"{share:.0%} of the distances are up to {distance:.4f}, not {bound:.4f}")
    return said
