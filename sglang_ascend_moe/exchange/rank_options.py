"""What each rank of an exchange chooses for itself; what all have to agree on is `ExchangeParameters`."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.exchange.control.rendezvous import BRING_UP
from sglang_ascend_moe.exchange.control.waiting import Patience
from sglang_ascend_moe.windows.layout import MAX_TIMEOUT_S


class RankOptions(NamedTuple):
    """Ranks may differ in these.

    workers: threads with which this rank moves large payloads, 1 to 256; where every rank has 2 or more, rounds of a
        prefill are also placed while experts run on the round before. None takes this rank's share of the cores.
    device: the NPU, with its index, on which windows and all tensors lie; None for the host. Never run on one.
    windows: on an NPU, who gives pooled memory: "memfabric", "aclshmem", or None for the one that is installed.
    post_mortem: folder into which this rank writes an account if the exchange fails; `ascend-moe doctor --post-mortem`
        reads those of all ranks together.
    secret_file: file of at least 32 bytes, readable by its owner only, by which ranks know each other's control blocks;
        the same bytes on every rank.
    bring_up_timeout_s: seconds for which this rank waits for the others to open the exchange too.
    stage: number of the pipeline stage whose ranks these are, for their accounts; None: there is only one.
    node: number of the node that this rank runs on, for messages, and for ranks of one machine that are to be treated
        as if they were on several; None: each machine is a node.
    """

    workers: int | None = None
    device: torch.device | None = None
    windows: str | None = None
    post_mortem: str | os.PathLike[str] | None = None
    secret_file: str | os.PathLike[str] | None = None
    bring_up_timeout_s: float = BRING_UP.seconds
    node: int | None = None
    stage: int | None = None

    def patience(self) -> Patience:
        """How long this rank waits for the others to open the exchange. Raises `InvalidInput`."""
        if not 0 < self.bring_up_timeout_s <= MAX_TIMEOUT_S:
            raise InvalidInput(
                f"bring_up_timeout_s={self.bring_up_timeout_s}: must be above 0 and at most {MAX_TIMEOUT_S} seconds"
            )
        return BRING_UP._replace(seconds=self.bring_up_timeout_s)
