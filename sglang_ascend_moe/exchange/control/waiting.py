"""Waits for a collective of torch.distributed, and tells a rank that is late from one that is gone.

Gloo raises RuntimeError for both, with words that differ from version to version: the clock decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerLost, PeerTimeout


def wait_for_ranks(
    begin: Callable[[], dist.Work], group: dist.ProcessGroup, call: str, timeout_s: float | None = None
) -> None:
    """Begins a collective of a gloo `group` (`async_op=True`) and waits until it is complete.

    timeout_s: None: as long as the group itself waits. Raises `PeerTimeout` after that time and `PeerLost` before it,
    saying that not every rank `call`.
    """
    patience = group._get_backend(torch.device("cpu")).options._timeout
    # Torch counts in milliseconds, and takes none for a wait without end.
    own = None if timeout_s is None else timedelta(milliseconds=max(1, math.ceil(timeout_s * 1000)))
    begun = time.monotonic()
    try:
        work = begin()
        if own is None:
            work.wait()
        else:
            work.wait(own)
    except RuntimeError as error:
        if timedelta(seconds=time.monotonic() - begun) >= min(own or patience, patience):
            raise PeerTimeout(f"not every rank {call}: {error}") from error
        raise PeerLost(f"not every rank {call}: {error}") from error
