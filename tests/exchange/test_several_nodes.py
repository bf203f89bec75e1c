"""Ranks on several nodes: here ranks of one machine that treat each other as if they were on two or four.

What may cross machines only crosses TCP here, too: where a rank is reached, and that it is gone. Windows are shared
memory of this machine.
"""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.errors import InvalidInput, PeerLost, Unsupported
from sglang_ascend_moe.exchange.control.machine import Machine, this_machine
from sglang_ascend_moe.exchange.rank_options import RankOptions
from sglang_ascend_moe.native.codes import Step
from sglang_ascend_moe.windows.layout import exchange_parameters

from .harmed_ranks import CALLS, SCENARIO, Seen, call, harm_at, see_fault
from .pool import Rank
from .surface import IMPLEMENTATIONS, open_exchange

OPENING = "sglang_ascend_moe.exchange.opening.this_machine"
KILLED = 3


def meet_over_tcp(rank: Rank) -> None:
    """In place of the pool's group, which has met in a file."""
    port = torch.zeros(1, dtype=torch.int64)
    store = None
    if rank.rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, rank.size, is_master=True, wait_for_workers=False)
        port[0] = store.port
    dist.broadcast(port, 0, group=rank.group)
    dist.barrier(group=rank.group)
    dist.destroy_process_group()
    store = store or dist.TCPStore("127.0.0.1", int(port), rank.size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank.rank, world_size=rank.size)
    rank.group = dist.group.WORLD


def call_on_nodes(rank: Rank, implementation: str, ranks_of_node: int, secret: Path | None) -> list[int]:
    """Every call, as if so many ranks in a row were on a node each; the nodes that the exchange knows."""
    meet_over_tcp(rank)
    node = rank.rank // ranks_of_node
    parameters = exchange_parameters(ranks=rank.size, **SCENARIO.options(rank.size))
    options = RankOptions(node=node, secret_file=secret)
    with IMPLEMENTATIONS[implementation].open(rank.group, parameters, options) as exchange:
        for how in CALLS:
            call(exchange, how, rank)
        assert exchange.gone() == []
        dist.barrier()
        return exchange.nodes


@pytest.mark.parametrize(
    ("ranks", "ranks_of_node"), [(2, 1), (4, 2), (4, 1)], ids=["2-nodes-of-1", "2-nodes-of-2", "4-nodes-of-1"]
)
def test_results_are_those_of_one_node(fresh_pool, implementation, ranks, ranks_of_node):
    nodes = [rank // ranks_of_node for rank in range(ranks)]
    assert fresh_pool(ranks).run(call_on_nodes, implementation, ranks_of_node, None) == [nodes] * ranks


def test_with_a_secret_ranks_of_other_nodes_are_known_by_it(fresh_pool, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o600)
    assert fresh_pool(4).run(call_on_nodes, "windows", 2, secret) == [[0, 0, 1, 1]] * 4


def lose_a_rank(rank: Rank, step: Step) -> Seen | None:
    meet_over_tcp(rank)
    exchange = open_exchange("windows", rank, SCENARIO, node=rank.rank // 2)
    call(exchange, "decode", rank)
    if rank.rank == KILLED:
        exchange.watch_steps(harm_at(step, signal.SIGKILL))
        call(exchange, "decode", rank)
        raise AssertionError(f"step {step.name} never began")
    seen = see_fault(exchange, rank, "decode", calls=2)
    # Another rank may have told of it while the process was still ending.
    while KILLED not in exchange.gone():
        time.sleep(0.01)
    return seen


@pytest.mark.parametrize("step", [Step.COUNTS, Step.ARRIVALS, Step.DONE], ids=lambda step: step.name.lower())
def test_a_killed_rank_is_named_with_its_node_on_every_node(fresh_pool, step):
    pool = fresh_pool(4)
    pool.start(lose_a_rank, step)
    *survivors, _ = pool.collect(dead={KILLED})
    for seen in survivors:
        assert (seen.code, seen.rank) == (PeerLost.code, KILLED)
        assert seen.message.startswith("rank 3 (node 1)")


def elsewhere(machine: Machine, **changed: bytes | str) -> Machine:
    return msgspec.structs.replace(machine, **changed)


def open_in_another_network(rank: Rank) -> None:
    meet_over_tcp(rank)
    node = rank.rank // 2
    here = elsewhere(this_machine(), network=bytes([node]) * 16)
    with patch(OPENING, lambda: here), open_exchange("windows", rank, SCENARIO, node=node) as exchange:
        for how in CALLS:
            call(exchange, how, rank)


def test_windows_are_shared_with_ranks_in_another_network_namespace(fresh_pool):
    fresh_pool(4).run(open_in_another_network)


def open_on_another_machine(rank: Rank) -> str:
    meet_over_tcp(rank)
    machine = elsewhere(this_machine(), identity=bytes([rank.rank // 2]) * 16, name=f"host{rank.rank // 2}")
    with ExitStack() as stack:
        stack.enter_context(patch(OPENING, lambda: machine))
        # Processes of another machine have numbers that mean nothing here.
        with pytest.raises(Unsupported) as caught:
            open_exchange("windows", rank, SCENARIO)
    return str(caught.value)


def test_ranks_of_two_machines_are_refused_by_name_without_npus(fresh_pool):
    [said] = set(fresh_pool(4).run(open_on_another_machine))
    assert said.startswith("rank 0 runs on host0 and rank 2 on host1, which share no memory")


def open_without_an_address(rank: Rank) -> None:
    with pytest.raises(InvalidInput, match=r"met in a FileStore, which has no address.*--dist-init-addr"):
        open_exchange("windows", rank, SCENARIO, node=rank.rank)


def test_ranks_that_have_met_nowhere_on_a_network_are_told(fresh_pool):
    fresh_pool(2).run(open_without_an_address)
