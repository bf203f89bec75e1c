"""Groups that the ranks of one pipeline stage make among themselves, and what all stages find out together.

Without `--pp-size` the one stage is the whole server. Commands import this module, and have to be light: torch comes
with the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch.distributed as dist

T = TypeVar("T")


def new_group(ranks: Sequence[int], timeout: timedelta) -> dist.ProcessGroup:
    """A gloo group of `ranks`, numbered as in the default group; only they call it.

    Stages may make different numbers of groups: they are told apart by their ranks.
    """
    import torch.distributed as dist

    return dist.new_group(list(ranks), backend="gloo", timeout=timeout, use_local_synchronization=True)


def of_all_stages(own: T) -> list[T]:
    """What the ranks of all stages have that are as many-eth there as this one, by stage; every rank calls it."""
    import torch.distributed as dist
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    said = [own] * parallel.pp_size
    if parallel.pp_size > 1:
        dist.all_gather_object(said, own, group=parallel.pp_group.cpu_group)
    return said
