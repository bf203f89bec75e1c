"""With verify=True, a bit that changes in a window is noticed before it is used, and its row is named everywhere."""

from __future__ import annotations

import pytest
import torch

from sglang_ascend_moe.errors import Corruption
from sglang_ascend_moe.native.codes import Step

from .harmed_ranks import call, require_new_exchange_works, require_poisoned
from .pool import Rank
from .reference import scale_by_expert
from .scenario import Scenario
from .surface import compute, open_exchange

SCENARIO = Scenario(tokens=(6, 4, 7), max_tokens=7, experts_per_rank=4, topk=3, hidden=512, routing="hot-rank")
CULPRIT = 1
HOT = 2  # the last of three ranks gets nearly all rows


def verified_calls(rank: Rank, how: str) -> None:
    with open_exchange("windows", rank, SCENARIO, verify=True, slots=2) as exchange:
        for _ in range(20):
            call(exchange, how, rank, SCENARIO)


@pytest.mark.parametrize("how", ["decode", "run-decode", "run-prefill"])
@pytest.mark.parametrize("ranks", [2, 3], ids=lambda ranks: f"{ranks}ranks")
def test_a_verified_exchange_gives_the_same_bits(pools, ranks, how):
    pools.run(ranks, verified_calls, how)


def flip_a_bit(row: torch.Tensor) -> None:
    row.view(torch.int16)[row.numel() // 2] ^= 1 << 7


def flip_in_rows(rank: Rank) -> str:
    exchange = open_exchange("windows", rank, SCENARIO, verify=True)
    window = exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
    exchange.combine(window.out.zero_(), window)
    if rank.rank == HOT:
        exchange.watch_steps(lambda step: flip_a_bit(window.rows[5]) if step == Step.VERIFY else None)
    with pytest.raises(Corruption) as caught:
        call(exchange, "decode", rank, SCENARIO)
    require_poisoned(exchange, rank)
    require_new_exchange_works(rank, "windows", "after the corruption", list(range(rank.size)))
    return str(caught.value)


def test_a_flipped_bit_in_a_placed_row_is_named_where_it_lies(fresh_pool):
    messages = fresh_pool(3).run(flip_in_rows)
    assert messages[HOT].startswith("row 5 from rank "), messages
    source = messages[HOT].split()[4]
    assert all(f"rank {source}" in message for rank, message in enumerate(messages) if str(rank) != source), messages


def flip_the_last_element_of_int8_rows(rank: Rank) -> None:
    scenario = SCENARIO._replace(hidden=48)
    exchange = open_exchange("windows", rank, scenario, verify=True, quant="int8")
    inputs = scenario.inputs(rank.size)[rank.rank]
    rows = exchange.dispatch(*inputs)
    exchange.combine(rows.out.zero_(), rows)

    def flip(step: Step) -> None:
        if step == Step.VERIFY:
            rows.rows[0, -1] ^= 1

    if rank.rank == rank.size - 1:
        exchange.watch_steps(flip)
    with pytest.raises(Corruption):
        again = exchange.dispatch(*inputs)
        exchange.combine(again.out.zero_(), again)


def test_the_checksum_of_an_int8_row_covers_its_last_bytes(fresh_pool):
    fresh_pool(2).run(flip_the_last_element_of_int8_rows)


def flip_in_results(rank: Rank) -> str:
    exchange = open_exchange("windows", rank, SCENARIO, verify=True)
    rows = exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
    compute(rows, scale_by_expert, rank)
    total = int(rows.counts.sum())

    def flip_all(step: Step) -> None:
        if step == Step.DONE:
            for row in rows.out[:total]:
                flip_a_bit(row)

    if rank.rank == HOT:
        exchange.watch_steps(flip_all)
    with pytest.raises(Corruption) as caught:
        exchange.combine(rows.out, rows)
    require_poisoned(exchange, rank)
    return str(caught.value)


def test_a_flipped_bit_in_a_result_is_named_by_its_readers(fresh_pool):
    messages = fresh_pool(3).run(flip_in_results)
    # Whoever finds it first names the row; the others may hear of it before they have looked.
    assert any(message.startswith("row ") for message in messages), messages
    for rank in (0, CULPRIT):
        assert f"rank {HOT}" in messages[rank], messages


def watch_for_verification(rank: Rank, verify: dict[str, bool]) -> bool:
    steps = set()
    with open_exchange("windows", rank, SCENARIO, **verify) as exchange:
        exchange.watch_steps(steps.add)
        call(exchange, "decode", rank, SCENARIO)
    return Step.VERIFY in steps


def test_checksums_are_off_unless_asked_for(pools):
    assert pools.run(3, watch_for_verification, {}) == [False] * 3
    assert pools.run(3, watch_for_verification, {"verify": True}) == [True] * 3
