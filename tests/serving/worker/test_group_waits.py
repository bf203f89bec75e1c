"""Which rank a collective waited for, and why it failed, from what every rank says of itself."""

from __future__ import annotations

import os
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from sglang_ascend_moe.errors import PeerFault, PeerLost, PeerTimeout
from sglang_ascend_moe.serving.blame import Collective
from sglang_ascend_moe.serving.worker.group_waits import explain
from sglang_ascend_moe.serving.worker.journal import Journal, JournalMemory, State

OPTIONS = SimpleNamespace(_timeout=timedelta(seconds=5))


@pytest.fixture
def collective(monkeypatch: pytest.MonkeyPatch) -> Collective:
    """One of three ranks."""
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda _group: [0, 1, 2])
    group: Any = SimpleNamespace(group_desc="tp", _get_backend=lambda _device: SimpleNamespace(options=OPTIONS))
    return Collective("all_reduce", group)


@pytest.mark.parametrize(
    ("other", "timed_out", "kind"),
    [
        pytest.param(State.GAVE_UP, False, PeerLost, id="it left, and is not gone yet"),
        pytest.param(State.TIMED_OUT, False, PeerTimeout, id="the other waited long enough"),
        pytest.param(State.GAVE_UP, True, PeerTimeout, id="this one waited long enough"),
    ],
)
def test_the_rank_that_still_serves_is_the_one_that_was_waited_for(
    collective: Collective, other: State, timed_out: bool, kind: type[PeerFault]
):
    descriptor = os.memfd_create("journal")
    journals = [Journal(JournalMemory(descriptor, 3, 1), rank, []) for rank in range(3)]
    os.close(descriptor)
    journals[2].mark(other)
    with pytest.raises(kind, match=r"rank 1 .*all_reduce of SGLang's group tp \(ranks 0, 1, 2\), step 0") as fault:
        explain(RuntimeError("lost"), collective, journals[0], timed_out, None)
    assert fault.value.rank == 1
