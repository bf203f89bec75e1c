"""Ranks agree on where experts live, at start-up and at every change, or all of them refuse."""

from typing import NamedTuple

import pytest

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.exchange.control.expert_placement import PlacementAgreement
from tests.exchange.pool import Rank

FIRST = {0: [0, 1, 2, 3, 0, 1], 2: [3, 2, 1, 0, 3, 3]}
SECOND = {0: [0, 1, 2, 3, 2, 3], 2: [3, 2, 1, 0, 3, 3]}
DIFFERENT = {0: [0, 1, 2, 3, 2, 1], 2: [3, 2, 1, 0, 3, 3]}


class Refused(NamedTuple):
    """What an agreement raised."""

    code: str
    message: str


def agree_on(rank: Rank, *wanted_by_rank: list[dict[int, list[int]]]) -> list[int | Refused]:
    """Agrees on one placement after the other; what each agreement gave, or what it refused."""
    agreement = PlacementAgreement(rank.group, timeout_s=30.0)
    results: list[int | Refused] = []
    for epoch, layers in enumerate(wanted_by_rank[min(rank.rank, len(wanted_by_rank) - 1)]):
        try:
            results.append(agreement.agree(layers, 4, [epoch]))
        except AscendMoeError as error:
            results.append(Refused(error.code, str(error)))
    return results


def require_named(refused: Refused, *named: str) -> None:
    assert [words for words in named if words not in refused.message] == []


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_ranks_learn_how_many_experts_change(pools, ranks: int):
    placements = [FIRST, SECOND, {2: [3, 2, 1, 0, 0, 0]}, FIRST]
    assert pools.run(ranks, agree_on, placements) == [[12, 2, 2, 4]] * ranks


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_change_that_differs_is_refused_on_every_rank_and_changes_nothing(pools, ranks: int):
    results = pools.run(ranks, agree_on, [FIRST, SECOND, SECOND], [FIRST, DIFFERENT, SECOND])
    assert len({tuple(result) for result in results}) == 1
    before, refused, after = results[0]
    assert (before, refused.code, after) == (12, ProtocolMismatch.code, 2)
    require_named(refused, "physical expert 5 of layer 0", "3 on rank 0", "1 on rank 1")


def test_a_start_up_that_differs_is_refused_on_every_rank(pools):
    results = pools.run(2, agree_on, [FIRST], [{**FIRST, 2: [3, 2, 1, 0, 0, 3]}])
    assert results[0] == results[1]
    [refused] = results[0]
    assert refused.code == ProtocolMismatch.code
    require_named(refused, "physical expert 4 of layer 2", "3 on rank 0", "0 on rank 1")


def test_a_placement_without_a_place_for_an_expert_is_refused_on_every_rank(pools):
    results = pools.run(2, agree_on, [{1: [0, 1, 2, 2]}])
    for [refused] in results:
        assert refused.code == InvalidInput.code
        require_named(refused, "layer 1")


def agree_without_rank_1(rank: Rank) -> str:
    agreement = PlacementAgreement(rank.group, timeout_s=0.5)
    agreement.agree(FIRST, 4, [])
    if rank.rank == 1:
        rank.note("stayed away")
        rank.wait_for_parent()
        return ""
    with pytest.raises(PeerTimeout):
        agreement.agree(SECOND, 4, [])
    rank.note("timed out")
    return "timed out"


def test_a_rank_that_does_not_come_to_a_change_is_a_timeout(fresh_pool):
    pool = fresh_pool(2)
    pool.start(agree_without_rank_1)
    pool.await_notes("timed out", [0])
    pool.release(1)
    assert pool.collect() == ["timed out", ""]
