"""Traffic in rounds against servers, whose processes must not hold more at the end than before."""

from __future__ import annotations

import time
from collections import Counter

import pytest

from sglang_ascend_moe.serving.launcher.engine_processes import title_of
from tests.serving.clients import ask, mixed_traffic
from tests.soak.growth import Sample, report, sample

MOST_GROWTH = 32 << 20
"""Bytes, of one process of a server: Python and its allocator take what a burst needs, and keep it."""
MOST_DESCRIPTORS = 4
"""That a process opens once, when something is asked of it for the first time."""
REST_SECONDS = 180.0
"""Within which connections that stay for a next request close: SGLang's router keeps them for half a minute."""
POLL_SECONDS = 0.5


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
    before = {pid: sample(0, pid).descriptors for pid in processes}
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
        report(request, title_of(pid), held)
    for pid, held in samples.items():
        assert held[-1].memory - held[len(held) // 2].memory < MOST_GROWTH, title_of(pid)
    assert _left_open(before) == {}
    return ended


def _left_open(before: dict[int, int]) -> dict[str, tuple[int, int]]:
    """Processes that hold more descriptors than `before`, and still do after a rest: how many, then and now."""
    deadline = time.monotonic() + REST_SECONDS
    while True:
        now = {pid: sample(0, pid).descriptors for pid in before}
        more = {
            f"{title_of(pid)} {pid}": (held, now)
            for pid, held in before.items()
            if (now := sample(0, pid).descriptors) > held + MOST_DESCRIPTORS
        }
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(POLL_SECONDS)
