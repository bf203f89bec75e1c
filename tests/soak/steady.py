"""Traffic in rounds against servers, whose processes must not hold more at the end than in the middle."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.serving.clients import ask, mixed_traffic
from tests.serving.cpu_time import title
from tests.soak.growth import Sample, report, sample

MOST_GROWTH = 32 << 20
"""Bytes, of one process of a server: Python and its allocator take what a burst needs, and keep it."""
MOST_DESCRIPTORS = 16
"""Connections that are just being closed."""


def require_steady(
    request: pytest.FixtureRequest,
    url: str,
    prompts: list[list[int]],
    expected: list[list[int]],
    processes: list[int],
    requests: int,
    rounds: int,
) -> Counter[str]:
    """How requests ended, counted; what each process holds is sampled after each round, and goes into the summary."""
    samples: dict[int, list[Sample]] = {pid: [] for pid in processes}
    ended: Counter[str] = Counter()
    for number in range(rounds):
        ended += mixed_traffic(url, prompts, expected, requests // rounds, seed=number)
        assert set(ended) <= {"right", "left"}, ended
        assert [
            ask(url, prompt, len(tokens)).tokens for prompt, tokens in zip(prompts, expected, strict=True)
        ] == expected
        for pid, held in samples.items():
            held.append(sample((number + 1) * (requests // rounds), pid))
    for pid, held in samples.items():
        report(request, title(pid), held)
    for pid, held in samples.items():
        middle, end = held[len(held) // 2], held[-1]
        assert end.descriptors - middle.descriptors <= MOST_DESCRIPTORS, title(pid)
        assert end.memory - middle.memory < MOST_GROWTH, title(pid)
    return ended
