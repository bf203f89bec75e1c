"""A rank that is killed, stopped or fails while others replay a graph: they name it as they do on the host.

No NPU has run this.
"""

from __future__ import annotations

import signal

import msgspec
import pytest
import torch

from sglang_ascend_moe.errors import PeerFault, PeerLost, PeerTimeout, SessionPoisoned
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from tests.exchange.pool import Rank
from tests.npu import emulated
from tests.npu.cann.conftest import NpuRanks
from tests.npu.cann.test_exchange_on_npu import batch_of, device_of, open_exchange, scale_rows
from tests.npu.cann.test_graphs_on_npu import TOKENS, Captured

pytestmark = pytest.mark.nightly

CULPRIT = 1
LATE = emulated.SEED_WHEN_AWAITED
SHORT_S = 1.0
"""A timeout for waits that are to end by it."""

PATIENT_S = 5.0


class Seen(msgspec.Struct):
    """What a rank was told: the kind of error, who is to blame, and the words."""

    kind: str
    rank: int | None
    text: str


def replay_until_harmed(rank: Rank, device: str, timeout_s: float) -> None:
    """All ranks replay; then only those that are not harmed, who are told why they wait in vain, and note it.

    On the host a call stands for a replay.
    """
    on_host = device == "cpu"
    place = torch.device("cpu") if on_host else device_of(rank)
    batch = batch_of(rank, 0, TOKENS).to(place)
    with open_exchange(rank, place, timeout_s=timeout_s) as exchange:
        exchange.run(*batch, scale_rows)
        captured = None if on_host else Captured(exchange, batch)

        def replay() -> None:
            if captured is None:
                exchange.run(*batch, scale_rows)
            else:
                captured.graph.replay()
                exchange.check_replays()

        replay()
        rank.note("replayed")
        if rank.rank == CULPRIT:
            rank.wait_for_parent()
            raise ArithmeticError("no such expert")
        with pytest.raises(PeerFault) as told:
            replay()
        with pytest.raises((PeerFault, SessionPoisoned), match=f"rank {CULPRIT}"):
            replay()
        rank.note(msgspec.json.encode(Seen(type(told.value).__name__, told.value.rank, told.value.args[0])).decode())


def harm(npu_ranks: NpuRanks, device: str, how: str, seed: int = LATE) -> list[Seen]:
    """What the ranks were told that were not harmed."""
    ranks, timeout_s = range(2), SHORT_S if how == "stopped" else 30.0
    pool = npu_ranks.fresh(len(ranks), replay_until_harmed, device, timeout_s, seed=None if device == "cpu" else seed)
    pool.await_notes("replayed", ranks)
    if how == "raises":
        pool.release(CULPRIT)
    else:
        pool.signal(CULPRIT, signal.SIGKILL if how == "killed" else signal.SIGSTOP)
    return [msgspec.json.decode(pool.next_note(rank), type=Seen) for rank in ranks if rank != CULPRIT]


KINDS = {"killed": PeerLost, "stopped": PeerTimeout, "raises": PeerLost}


def name_the_culprit(npu_ranks: NpuRanks, how: str, seed: int = LATE) -> None:
    """Others name a rank that was harmed, in the words of the host."""
    expected = harm(npu_ranks, "cpu", how)
    assert [(seen.kind, seen.rank) for seen in expected] == [(KINDS[how].__name__, CULPRIT)]
    assert harm(npu_ranks, "npu", how, seed) == expected


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[] if how == "killed" else pytest.mark.nightly) for how in KINDS]
)
def test_a_rank_that_is_harmed_during_replays_is_named_as_on_the_host(npu_ranks, how):
    name_the_culprit(npu_ranks, how)


def stay_after_a_failure(rank: Rank) -> None:
    """A rank whose experts fail, and which leaves its exchange open."""

    def experts(rows: ExpertRows) -> None:
        if rank.rank == CULPRIT:
            raise ArithmeticError("no such expert")
        scale_rows(rows)

    batch = batch_of(rank, 0, TOKENS).to(device_of(rank))
    exchange = open_exchange(rank, device_of(rank), timeout_s=PATIENT_S)
    with pytest.raises(ArithmeticError if rank.rank == CULPRIT else PeerLost):
        exchange.run(*batch, experts)
    rank.note("told")
    rank.wait_for_parent()
    exchange.close()


def tell_while_open(npu_ranks: NpuRanks, seed: int = LATE) -> None:
    """What a rank tells the others arrives without a call of it that follows."""
    pool = npu_ranks.fresh(2, stay_after_a_failure, seed=seed)
    pool.await_notes("told", [0, CULPRIT])
    pool.release(0, CULPRIT)
    pool.collect()


def test_a_rank_that_fails_has_told_the_others_when_its_call_ends(npu_ranks):
    tell_while_open(npu_ranks)
