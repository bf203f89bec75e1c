"""What a process holds, sampled while it works, and whether that grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil
import pytest

REPORTED = "what a long run held"
"""The property of a test under which `report` writes."""


class Sample(NamedTuple):
    """At a number of calls: bytes of memory of the process's own, open descriptors, threads."""

    calls: int
    memory: int
    descriptors: int
    threads: int


def sample(calls: int, process: int | None = None) -> Sample:
    """Of a process by its id; of this one by default. Memory that is shared with others does not count."""
    found = psutil.Process(process)
    memory = found.memory_info()
    return Sample(calls, memory.rss - memory.shared, found.num_fds(), found.num_threads())


def slope(samples: Sequence[Sample], value: Callable[[Sample], int]) -> float:
    """Growth of a value per thousand calls: the line of least squares through the second half of the samples."""
    later = samples[len(samples) // 2 :]
    mean_calls = sum(item.calls for item in later) / len(later)
    mean = sum(map(value, later)) / len(later)
    spread = sum((item.calls - mean_calls) ** 2 for item in later)
    return 1000 * sum((item.calls - mean_calls) * (value(item) - mean) for item in later) / spread


def report(request: pytest.FixtureRequest, name: str, samples: Sequence[Sample]) -> None:
    """Add a line to the summary that closes a run."""
    line = (
        f"{request.node.name}: {name}, {samples[-1].calls} calls: memory {samples[len(samples) // 2].memory >> 10} ->"
        f" {samples[-1].memory >> 10} KiB ({slope(samples, lambda item: item.memory) / 1024:+.2f} KiB per 1000 calls),"
        f" descriptors {samples[len(samples) // 2].descriptors} -> {samples[-1].descriptors}"
        f" ({slope(samples, lambda item: item.descriptors):+.4f}), threads {samples[-1].threads}"
    )
    request.node.user_properties.append((REPORTED, line))
