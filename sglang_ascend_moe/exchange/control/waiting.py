"""Waits for a collective of torch.distributed, and tells a rank that is late from one that is gone.

Gloo raises RuntimeError for both, with words that differ from version to version: the clock decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerLost, PeerTimeout
from sglang_ascend_moe.exchange.control.roll_call import RollCall


class Patience(NamedTuple):
    """How long a rank waits for the others, and what sets it, as a user knows it."""

    seconds: float
    set_by: str


def wait_for_ranks(
    begin: Callable[[], dist.Work], group: dist.ProcessGroup, call: str, patience: Patience | None = None,
    *, calls_roll: bool = True,
) -> None:  # fmt: skip
    """Begins a collective of a gloo `group` (`async_op=True`) and waits until it is complete.

    patience: None: as long as the group itself waits. Raises `PeerTimeout` after that time and `PeerLost` before it,
    naming the ranks that have not `call`, if the group's store tells them, and the time.

    calls_roll: whether ranks say in the store that they have come, which is a message more of each.
    """
    of_group = group._get_backend(torch.device("cpu")).options._timeout.total_seconds()
    bound = patience or Patience(of_group, "the timeout of the group")
    # Torch counts in milliseconds, and takes none for a wait without end.
    own = None if patience is None else timedelta(milliseconds=max(1, math.ceil(patience.seconds * 1000)))
    roll = RollCall(group) if calls_roll else None
    begun = time.monotonic()
    try:
        work = begin()
        if own is None:
            work.wait()
        else:
            work.wait(own)
    except RuntimeError as error:
        waited = time.monotonic() - begun
        absent = roll.absent() if roll is not None else []
        blamed = absent[0] if len(absent) == 1 else None
        missing = f"rank{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}" if absent else ""
        if waited >= min(bound.seconds, of_group):
            limit = bound if bound.seconds <= of_group else Patience(of_group, "the timeout of the group")
            raise PeerTimeout(
                f"{missing or 'some rank'} had not {call} within {limit.seconds:g} s ({limit.set_by}): {error}", blamed
            ) from error
        who = f"of the ranks that have not {call}, {missing}, one" if len(absent) > 1 else missing or "a rank"
        raise PeerLost(f"{who} has ended before every rank had {call}: {error}", blamed) from error
