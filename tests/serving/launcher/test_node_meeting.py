"""Launchers of several nodes meet before any rank starts; what one refuses, all refuse."""

from __future__ import annotations

import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from sglang_ascend_moe.errors import AscendMoeError, PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.exchange.control.machine import Machine
from sglang_ascend_moe.exchange.control.network import Address, framed
from sglang_ascend_moe.exchange.control.secret import Secret
from sglang_ascend_moe.exchange.control.waiting import Patience
from sglang_ascend_moe.launch.servers.server_process import free_port
from sglang_ascend_moe.serving.launcher.node_blocks import NodeHello
from sglang_ascend_moe.serving.launcher.node_meeting import Nodes, gather_nodes, join_nodes, settings_to_compare
from sglang_ascend_moe.serving.options import Options

PATIENCE = Patience(30.0, "--ascend-moe-bring-up-timeout")
SHORT = Patience(0.5, "--ascend-moe-bring-up-timeout")
HERE = Machine(b"h" * 16, b"n" * 16, "here")
HELLO = NodeHello(
    version="1.0", node=0, nodes=2, machine=HERE, device="cpu", settings={"--tp-size": "4", "--dtype": "auto"}
)
SECRET = Secret(b"s" * 32)


def hello(node: int, nodes: int = 2, **changed: Any) -> NodeHello:
    return msgspec.structs.replace(HELLO, node=node, nodes=nodes, **changed)


def free_address() -> Address:
    return Address("127.0.0.1", free_port())


def meet(*hellos: NodeHello, secrets: dict[int, Secret | None] | None = None, patience: Patience = PATIENCE) -> list:
    """What came of each: `Nodes`, or the error. Node 0 is the first."""
    at, secrets = free_address(), secrets or {}

    def take_part(own: NodeHello) -> Nodes | AscendMoeError:
        try:
            secret = secrets.get(own.node)
            return (gather_nodes if own is hellos[0] else join_nodes)(own, at, secret, patience)
        except AscendMoeError as error:
            return error

    with ThreadPoolExecutor(len(hellos)) as threads:
        futures: list[Future] = [threads.submit(take_part, own) for own in hellos]
        return [future.result() for future in futures]


def close(results: list) -> None:
    for result in results:
        if isinstance(result, Nodes):
            for channel in result.channels.values():
                channel.close()


@pytest.mark.parametrize("nodes", [2, 4])
@pytest.mark.parametrize("secret", [None, SECRET], ids=["unsealed", "sealed"])
def test_nodes_that_were_started_alike_meet_and_know_one_name_of_the_server(nodes, secret):
    met = meet(*(hello(node, nodes) for node in range(nodes)), secrets=dict.fromkeys(range(nodes), secret))
    assert [each.own for each in met] == list(range(nodes))
    assert [sorted(each.channels) for each in met] == [[*range(1, nodes)], *[[0]] * (nodes - 1)]
    assert len({each.server for each in met}) == 1
    close(met)


REFUSED = {
    "tp-size": ({"settings": {"--tp-size": "2", "--dtype": "auto"}}, r"--tp-size is 2 on node 1 .* and 4 on node 0"),
    "a setting less": ({"settings": {"--tp-size": "4"}}, r"--dtype is None on node 1 .* and auto on node 0"),
    "device": ({"device": "npu"}, r"--device is npu on node 1 .* and cpu on node 0"),
    "nnodes": ({"nodes": 3}, r"--nnodes is 3 on node 1 .* and 2 on node 0"),
    "rank taken": ({"node": 0}, r"--node-rank 0 of 127\.0\.0\.1.*each its own, from 0 to 1"),
    "rank past the end": ({"node": 2}, r"--node-rank 2 of 127\.0\.0\.1.*only 2 nodes"),
    "version": ({"version": "2.0"}, r"node 1 .* has sglang-ascend-moe 2\.0 .*, this node 1\.0"),
    "protocol": ({"protocol": 99}, r"node 1 .* \(protocol 99\), this node"),
    "machine": ({"machine": Machine(b"x" * 16, b"n" * 16, "there")}, r"node 0 runs on here and node 1 on there"),
}


@pytest.mark.parametrize(("changed", "said"), REFUSED.values(), ids=REFUSED)
def test_a_node_that_does_not_fit_is_refused_by_name_on_all_nodes(changed, said):
    fields = {"node": 1, **changed}
    first, other = meet(hello(0), hello(**fields))
    assert isinstance(first, ProtocolMismatch)
    with pytest.raises(ProtocolMismatch, match=said):
        raise first
    # A node of another version cannot read why, and says which version it is itself.
    assert isinstance(other, AscendMoeError)
    if {"version", "protocol", "node"} & changed.keys():
        assert "node 0" in str(other)
    else:
        assert str(first) in str(other)


def test_nodes_with_npus_may_be_on_several_machines():
    there = Machine(b"x" * 16, b"n" * 16, "there")
    met = meet(hello(0, device="npu"), hello(1, device="npu", machine=there))
    assert [type(each) for each in met] == [Nodes, Nodes]
    close(met)


@pytest.mark.parametrize(
    ("there", "said"), [(Secret(b"x" * 32), "wrong seal"), (None, "does not seal")], ids=["another", "none"]
)
def test_a_node_with_another_secret_is_refused_by_name_on_both(there, said):
    first, other = meet(hello(0), hello(1), secrets={0: SECRET, 1: there})
    assert isinstance(first, ProtocolMismatch)
    assert "node 1 (127.0.0.1:" in str(first)
    assert said in str(first)
    assert isinstance(other, AscendMoeError)
    assert "node 0" in str(other)


def test_a_node_that_does_not_come_is_named_on_the_others_with_the_address():
    first, other = meet(hello(0, 3), hello(1, 3), patience=SHORT)
    assert isinstance(first, PeerTimeout)
    with pytest.raises(PeerTimeout, match=r"node 2 of 3 had not come to node 0 at 127\.0\.0\.1:\d+ within 0\.5 s"):
        raise first
    assert str(first) in str(other)


def test_without_node_0_the_address_is_named():
    at = free_address()
    with pytest.raises(PeerTimeout, match=f"nobody answers at {at} .*, where node 0 should be, within 0.5 s"):
        join_nodes(hello(1), at, None, SHORT)


def test_strangers_are_turned_away():
    at = free_address()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(gather_nodes, hello(0), at, None, PATIENCE)
        until = time.monotonic() + PATIENCE.seconds
        while time.monotonic() < until:
            try:
                stranger = socket.create_connection(at)
                break
            except ConnectionRefusedError:
                continue
        with closing(stranger):
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            silent = socket.create_connection(at)
            with closing(silent), closing(socket.create_connection(at)) as hangs_up:
                hangs_up.sendall(framed(b"c" * 32) + framed(b"no block"))
                hangs_up.close()
                other = join_nodes(hello(1), at, None, PATIENCE)
        close([first.result(), other])


def test_what_has_to_be_alike_is_compared_by_flag_and_what_belongs_to_a_node_is_not():
    settings = SimpleNamespace(tp_size=4, node_rank=1, host="10.0.0.2", speculative_algorithm="EAGLE3")
    compared = settings_to_compare(settings, Options(post_mortem="/tmp/node1", quant="int8"))
    assert compared["--tp-size"] == "4"
    assert compared["--speculative-algorithm"] == "EAGLE3"
    assert compared["--ascend-moe-quant"] == "int8"
    assert not {"--node-rank", "--host", "--ascend-moe-post-mortem", "--ascend-moe-secret-file"} & compared.keys()
