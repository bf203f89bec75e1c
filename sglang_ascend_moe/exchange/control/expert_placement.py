"""Where experts live: ranks agree on it at start-up and before every change.

With redundant experts the physical experts, which the exchange knows, outnumber the logical ones, which the router
knows. A rank that maps one to another differently sends rows to the wrong weights, and nothing else would notice.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.distributed as dist

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import MAX_BLOCK_BYTES, ExpertPlacement, decode, encode
from sglang_ascend_moe.exchange.control.rendezvous import BRING_UP, gather_frames
from sglang_ascend_moe.exchange.control.secret import Secret
from sglang_ascend_moe.exchange.control.waiting import Patience

_NUMBER_BYTES = 8


class _Difference(NamedTuple):
    """What two ranks have not in common, and the value of each."""

    what: str
    one: object
    another: object


class PlacementAgreement:
    """The placement that the ranks of a group agreed on last. Every rank calls `agree`, in the same order."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        timeout_s: float,
        secret: Secret | None = None,
        bring_up_timeout_s: float = BRING_UP.seconds,
    ) -> None:
        """group: moves CPU tensors (gloo). timeout_s: how long a rank waits for the others to come to a change;
        bring_up_timeout_s: to the first agreement. secret: seals what ranks tell each other.
        """
        self._group = group
        self._patience = Patience(timeout_s, "timeout_s; of a server --ascend-moe-timeout")
        self._bring_up = BRING_UP._replace(seconds=bring_up_timeout_s)
        self._secret = secret
        self._session: bytes | None = None
        self._changes = 0
        self._layers: dict[int, list[int]] = {}

    def agree(self, layers: Mapping[int, Sequence[int]], logical_experts: int, epochs: Sequence[int]) -> int:
        """Returns in how many places the expert changes, when every rank wants the same; all of them at first.

        layers: layer -> logical expert of each physical one. epochs: exchanges begun by each exchange of this rank.

        Raises on every rank: `ProtocolMismatch` naming the layer and both values if two ranks differ, `InvalidInput`
        for a placement that no rank could serve, `PeerTimeout` or `PeerLost` if a rank does not come.
        """
        own = ExpertPlacement(
            session=self._session or os.urandom(16),
            rank=dist.get_rank(self._group),
            change=self._changes,
            epochs=list(epochs),
            logical_experts=logical_experts,
            layers={layer: list(experts) for layer, experts in layers.items()},
        )
        placements = self._gather(own)
        refuse_differences(placements)
        refuse_unservable(own, len(placements))
        self._session = placements[0].session
        self._changes += 1
        moved = sum(_moved(self._layers.get(layer), experts) for layer, experts in own.layers.items())
        self._layers.update(own.layers)
        return moved

    def _gather(self, own: ExpertPlacement) -> list[ExpertPlacement]:
        data = encode(own)
        first = self._session is None
        patience = self._bring_up if first else self._patience
        call = "opened its exchanges" if first else "came to a change of the placement of experts"
        sizes = gather_frames(
            self._group, len(data).to_bytes(_NUMBER_BYTES), _NUMBER_BYTES, patience, call, self._secret
        )
        largest = max(map(int.from_bytes, sizes))
        if largest > MAX_BLOCK_BYTES:
            raise ProtocolMismatch(f"a placement of experts of {largest} bytes exceeds {MAX_BLOCK_BYTES}")
        frames = gather_frames(self._group, data, largest, patience, call, self._secret)
        return [decode(frame, ExpertPlacement, self._session) for frame in frames]


def refuse_differences(placements: Sequence[ExpertPlacement]) -> None:
    """Raises `ProtocolMismatch`, naming the layer and both values, if two ranks have different placements.

    Every rank passes the same blocks, by rank, and so comes to the same verdict.
    """
    first = placements[0]
    for other in placements[1:]:
        difference = _difference(first, other)
        if difference is not None:
            raise ProtocolMismatch(
                f"placement of experts: {difference.what} is {difference.one} on rank {first.rank} and "
                f"{difference.another} on rank {other.rank}"
            )


def _difference(first: ExpertPlacement, other: ExpertPlacement) -> _Difference | None:
    for name in ("change", "epochs", "logical_experts"):
        one, another = getattr(first, name), getattr(other, name)
        if one != another:
            return _Difference(f"`{name}`", one, another)
    for layer in sorted(first.layers.keys() | other.layers.keys()):
        here, there = first.layers.get(layer), other.layers.get(layer)
        if here is None or there is None:
            return _Difference(f"a change of layer {layer}", *("wanted" if x else "not wanted" for x in (here, there)))
        if len(here) != len(there):
            return _Difference(f"the number of physical experts of layer {layer}", len(here), len(there))
        for place, (one, another) in enumerate(zip(here, there, strict=True)):
            if one != another:
                return _Difference(f"the logical expert at physical expert {place} of layer {layer}", one, another)
    return None


def refuse_unservable(placement: ExpertPlacement, ranks: int) -> None:
    """Raises `InvalidInput`, naming the layer, for a placement that some routed token would not find its expert in."""
    logical = placement.logical_experts
    for layer, experts in placement.layers.items():
        if len(experts) % ranks:
            raise InvalidInput(
                f"placement of experts: the {len(experts)} physical experts of layer {layer} cannot be divided among "
                f"{ranks} ranks; change --ep-num-redundant-experts"
            )
        missing = set(range(logical)) - set(experts)
        unknown = set(experts) - set(range(logical))
        if missing or unknown:
            problem = f"logical expert {min(missing)} is nowhere" if missing else f"there is no expert {min(unknown)}"
            raise InvalidInput(
                f"placement of experts: layer {layer} has to hold each of {logical} experts, but {problem}; change "
                f"--init-expert-location"
            )


def _moved(before: Sequence[int] | None, after: Sequence[int]) -> int:
    if before is None:
        return len(after)
    return sum(old != new for old, new in zip(before, after, strict=False))
