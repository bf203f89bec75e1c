"""What decode steps asked of an emulated NPU, as `count_decode_steps` (tests/serving/patches.py) writes it."""

import json
from collections import Counter

MARK = "a decode step asked for "


def counted_steps(log: str) -> list[Counter[str]]:
    """Calls of each decode step of all ranks, by name."""
    lines = [line for line in log.splitlines() if MARK in line]
    return [Counter(json.loads(line.partition(MARK)[2])) for line in lines]
