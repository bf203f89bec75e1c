"""The memory of an exchange is what it says, has no name, and is gone with the exchange or its process."""

from __future__ import annotations

import os
import signal
from collections import Counter
from typing import NamedTuple

import pytest
import torch

from sglang_ascend_moe.errors import InvalidInput, PeerLost, ProtocolMismatch, WindowTooSmall
from sglang_ascend_moe.exchange.exchange import Exchange

from .harmed_ranks import CALLS, SCENARIO, call, small_window
from .pool import Ended, Rank
from .process_state import (
    Mapping,
    descriptors,
    mappings,
    names_in_shared_memory,
    names_left_in_shared_memory,
)
from .rounds import window_bytes_for
from .scenario import Scenario
from .surface import open_exchange


def require_nothing_left(before, after, what: str) -> None:
    if before != after:
        raise AssertionError(f"{what} left: {after - before}, missing: {before - after}")


def use_and_close(rank: Rank, implementation: str) -> None:
    # The first exchange of a process may load and keep what all later ones use.
    for opens in range(4):
        before = descriptors(), mappings()
        with open_exchange(implementation, rank, SCENARIO, slots=2) as exchange:
            for how in CALLS:
                call(exchange, how, rank)
        del exchange
        if opens:
            require_nothing_left(before[0], descriptors(), f"descriptors of exchange {opens}")
            require_nothing_left(before[1], mappings(), f"mappings of exchange {opens}")


def test_a_closed_exchange_holds_no_descriptor_and_no_memory(pools, implementation, ranks):
    pools.run(ranks, use_and_close, implementation)


def fail_to_create(rank: Rank, implementation: str) -> None:
    open_exchange(implementation, rank, SCENARIO).close()
    before = descriptors(), mappings()
    with pytest.raises(InvalidInput):
        open_exchange(implementation, rank, SCENARIO, hidden=24)
    with pytest.raises(ProtocolMismatch):
        open_exchange(implementation, rank, SCENARIO, topk=1 + rank.rank)
    if implementation == "windows":
        with pytest.raises(WindowTooSmall):
            open_exchange(implementation, rank, SCENARIO, window_bytes=4096)
    require_nothing_left(before[0], descriptors(), "descriptors of exchanges that were never made")
    require_nothing_left(before[1], mappings(), "mappings of exchanges that were never made")


def test_a_refused_create_leaves_nothing(pools, implementation):
    pools.run(3, fail_to_create, implementation)


def survive(rank: Rank) -> None:
    open_exchange("windows", rank, SCENARIO).close()
    # Descriptors of the group itself are not ours: gloo drops those of a lost peer.
    before = descriptors_of_exchanges(), mappings()
    exchange = open_exchange("windows", rank, SCENARIO)
    call(exchange, "decode", rank)
    if rank.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(PeerLost):
        call(exchange, "decode", rank)
    exchange.close()
    del exchange
    require_nothing_left(before[0], descriptors_of_exchanges(), "descriptors of a poisoned exchange")
    require_nothing_left(before[1], mappings(), "mappings of a poisoned exchange")


def descriptors_of_exchanges() -> Counter[str]:
    return Counter({name: count for name, count in descriptors().items() if "memfd" in name or "pidfd" in name})


def test_a_survivor_of_a_lost_rank_is_left_with_nothing(fresh_pool):
    pool = fresh_pool(3)
    pool.start(survive)
    assert pool.collect(dead={1}) == [None, Ended(-signal.SIGKILL), None]


class Configuration(NamedTuple):
    scenario: Scenario
    options: dict[str, object]


CONFIGURATIONS = {
    "default": Configuration(SCENARIO, {}),
    "fp32": Configuration(SCENARIO._replace(dtype="fp32"), {}),
    "two-slots": Configuration(SCENARIO, {"slots": 2}),
    "distinct-topk": Configuration(SCENARIO._replace(experts_per_rank=2, routing="distinct"), {"distinct_topk": True}),
    "many-experts": Configuration(SCENARIO._replace(experts_per_rank=64), {}),
    "large-rows": Configuration(SCENARIO._replace(hidden=7168, max_tokens=100), {}),
    "window-bytes": Configuration(SCENARIO, {"window_bytes": 300_000}),
}


def compare_memory(rank: Rank, configuration: Configuration) -> None:
    scenario, options = configuration
    told = Exchange.memory(ranks=rank.size, **{**scenario.options(rank.size), **options})
    before = mappings()
    with open_exchange("windows", rank, scenario, **options) as exchange:
        made = mappings() - before
        if set(made) != {Mapping(told.total, "rw-s", mapping.path) for mapping in made}:
            raise AssertionError(f"{told.total} bytes were told, mapped were {made}")
        if sum(made.values()) != rank.size:
            raise AssertionError(f"{rank.size} windows were expected, mapped were {made}")
        named = [mapping.path for mapping in made if not mapping.path.startswith("/memfd:")]
        if named:
            raise AssertionError(f"windows have names in the file system: {named}")
        rows = exchange.dispatch(*scenario.inputs(rank.size)[rank.rank])
        row_bytes = rows.rows.element_size() * scenario.hidden
        slots = int(options.get("slots", 1))
        for name, tensor, region in (("rows", rows.rows, told.regions.rows), ("out", rows.out, told.regions.out)):
            # The region ends at a page.
            if not 0 <= region - slots * len(tensor) * row_bytes < 4096:
                raise AssertionError(f"{name} has {len(tensor)} rows of {row_bytes} bytes in a region of {region}")


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_memory_tells_what_is_mapped(pools, ranks, configuration):
    pools.run(ranks, compare_memory, configuration)


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS.keys())
def test_regions_add_up_to_the_total_but_for_pages(configuration):
    scenario, options = configuration
    told = Exchange.memory(ranks=4, **{**scenario.options(4), **options})
    regions = [getattr(told.regions, name) for name in told.regions.__struct_fields__]
    assert 0 <= told.total - sum(regions) < 4096 * len(regions)
    assert told.total <= options.get("window_bytes", told.total)


def test_memory_grows_with_what_it_is_asked_to_hold():
    def total(**changes: object) -> int:
        options = {"num_experts": 64, "hidden": 1024, "max_tokens": 64, "topk": 8}
        return Exchange.memory(ranks=8, **{**options, **changes}).total

    usual = total()
    rows_of_a_rank = 2 * 8 * 64 * 8 * 1024 * 2
    assert rows_of_a_rank < usual < rows_of_a_rank * 1.1
    assert total(distinct_topk=True, num_experts=8) < usual / 7
    assert total(slots=2) > usual * 1.9
    assert total(dtype=torch.float32) > usual * 1.9


def hold_live_exchange(rank: Rank) -> None:
    """Look for names while the exchange is in use, then end in whatever way the parent has in mind."""
    before = descriptors()
    with open_exchange("windows", rank, SCENARIO, **small_window(rank)) as exchange:
        call(exchange, "run-prefill", rank)
        named = [path for path in descriptors() - before if path.startswith("/") and not path.startswith("/memfd:")]
        if named:
            raise AssertionError(f"an exchange holds files with names: {named}")
        rank.note("live")
        rank.wait_for_parent()


@pytest.mark.parametrize("culprit", [0, 1, 2], ids=lambda rank: f"rank{rank}")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_killed_rank_leaves_no_name(fresh_pool, culprit, how):
    before = names_in_shared_memory()
    pool = fresh_pool(3)
    pids = pool.pids
    pool.start(hold_live_exchange)
    pool.await_notes("live", range(3))
    pool.signal(culprit, how)
    pool.release(*(rank for rank in range(3) if rank != culprit))
    assert pool.collect(dead={culprit})[culprit] == Ended(-how)
    pool.close()
    require_ended(pids)
    assert names_left_in_shared_memory(before) == set()


def interrupted(rank: Rank) -> None:
    try:
        hold_live_exchange(rank)
    except KeyboardInterrupt:
        return
    raise AssertionError("not interrupted")


def test_ctrl_c_on_all_ranks_leaves_no_name_and_no_process(fresh_pool):
    before = names_in_shared_memory()
    pool = fresh_pool(3)
    pids = pool.pids
    pool.start(interrupted)
    pool.await_notes("live", range(3))
    for rank in range(3):
        pool.signal(rank, signal.SIGINT)
    pool.collect()
    pool.close()
    require_ended(pids)
    assert names_left_in_shared_memory(before) == set()


def exit_without_closing(rank: Rank) -> None:
    exchange = open_exchange("windows", rank, SCENARIO)
    call(exchange, "decode", rank)


def test_processes_that_end_without_closing_leave_no_name(fresh_pool):
    before = names_in_shared_memory()
    pool = fresh_pool(3)
    pids = pool.pids
    pool.run(exit_without_closing)
    pool.close()
    require_ended(pids)
    assert names_left_in_shared_memory(before) == set()


def require_ended(pids: list[int]) -> None:
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def keep_rows_past_close(rank: Rank) -> None:
    with open_exchange("windows", rank, SCENARIO) as exchange:
        rows = exchange.dispatch(*SCENARIO.inputs(rank.size)[rank.rank])
        exchange.combine(rows.out.zero_(), rows)
    del exchange
    # The exchange is gone; its memory must stay for as long as a tensor refers to it.
    rows.out.copy_(rows.rows)


def test_rows_outlive_the_exchange(pools):
    pools.run(2, keep_rows_past_close)


def open_in_a_small_window(rank: Rank, window_bytes: int) -> int:
    with open_exchange("windows", rank, SCENARIO, window_bytes=window_bytes) as exchange:
        call(exchange, "run-prefill", rank)
        return exchange.window.total


def test_a_window_is_never_larger_than_asked_for(pools):
    window_bytes = window_bytes_for(3, SCENARIO, tokens=2) + 100
    assert all(total <= window_bytes for total in pools.run(3, open_in_a_small_window, window_bytes))
