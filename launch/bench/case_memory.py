"""What the variants of a case touch, in bytes of all ranks together, known before anything is allocated.

`kept`: from opening to closing, because variants are measured in turn and all have to be there. `passing`: only while
one variant runs or is checked; of these the greatest counts, not their sum.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sglang_ascend_moe.launch.bench.cases import Case
from sglang_ascend_moe.launch.bench.row_kernels import Shape
from sglang_ascend_moe.serving.machine_limits import MachineLimits

SPARE_BYTES = 1 << 30
"""Left to everyone else on the machine, and for what does not grow with the rows."""
INDEX_BYTES = 64
"""Of a routed row: ids, weights, and the positions that each variant keeps."""

_RELAYS = ("relay", "relay-direct")
_COPIES = ("memcpy", "quantise-memcpy")
_SCRATCH = (*_RELAYS, "collective-native", "mpi")


def received_rows(case: Case, traffic: Tensor) -> list[int]:
    """Rows that each rank receives. `traffic` [ranks, experts]: rows that each rank sends to each expert."""
    found: list[int] = traffic.sum(dim=0).view(case.ranks, -1).sum(dim=1).tolist()
    return found


def kept(case: Case, received: Sequence[int], names: Sequence[str]) -> dict[str, int]:
    """By what it is for; variants share what has one name."""
    row, result = _row_bytes(case)
    routed = sum(received)
    tokens = case.ranks * case.tokens
    own = case.tokens * case.topk
    found = {"tokens": 2 * tokens * result + routed * INDEX_BYTES}
    if "relay-free" in names:
        found["windows"] = routed * (row + result) + tokens * result
    if any(name in names for name in (*_RELAYS, *_COPIES)):
        found["relay buffers"] = routed * (row + result)
    if any(name in names for name in _SCRATCH):
        found["scratch"] = sum(2 * max(rows, own) for rows in received) * max(row, result) + tokens * result
    copies = [name for name in _COPIES if name in names]
    if copies:
        found["sources and sums of copies"] = len(copies) * tokens * (result + (2 * row if case.dtype == "int8" else 0))
    return found


def passing(case: Case, received: Sequence[int], names: Sequence[str]) -> int:
    """The greatest."""
    _, result = _row_bytes(case)
    routed, tokens = sum(received), case.ranks * case.tokens
    found = [0]
    if "collective" in names:
        # Results, what goes back and what has arrived there; instead of the second, while sums are made: four copies of
        # them in float32 and one more.
        found.append(2 * routed * result + max(routed, 9 * tokens) * result)
    if any(name in names for name in _COPIES):
        # While they are checked: the tokens of one source, and what should have come back.
        found.append(2 * tokens * result)
    return max(found)


def needed(case: Case, received: Sequence[int], names: Sequence[str]) -> int:
    """Most bytes that are touched at a time."""
    return sum(kept(case, received, names).values()) + passing(case, received, names)


def without_room(case: Case, received: Sequence[int], names: Sequence[str], available: int) -> dict[str, str]:
    """Why some of `names` are left out: with them the case would touch more than the `available` bytes of the machine.

    Variants are left out from the hungriest on.
    """
    missing: dict[str, str] = {}
    remaining = list(names)
    while remaining and (bytes_needed := needed(case, received, remaining)) > available - SPARE_BYTES:
        without = {name: needed(case, received, [other for other in remaining if other != name]) for name in remaining}
        hungriest = min(remaining, key=without.__getitem__)
        remaining.remove(hungriest)
        others = f" together with {', '.join(remaining)}" if remaining else ""
        missing[hungriest] = (
            f"needs {(bytes_needed + SPARE_BYTES) / 2**30:.1f} GiB{others}, {available / 2**30:.1f} GiB are available:"
            " choose fewer with --against, or lower --tokens"
        )
    return missing


def bytes_available(limits: MachineLimits) -> int:
    """What the machine and the container both have left."""
    if limits.container_available is None:
        return limits.memory_available
    return min(limits.memory_available, limits.container_available)


def _row_bytes(case: Case) -> tuple[int, int]:
    """Of a row on its way to an expert, and of a result."""
    shape = Shape.of(case, 0)
    return shape.packed_bytes, shape.result_bytes
