"""The sockets through which ranks of one host meet are on its loopback interface only."""

import os
import socket
import sys
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from sglang_ascend_moe.serving.host import fixes, loopback

LISTENS = "0A"
LOOPBACK = "0100007F"
"""127.0.0.1 as the kernel prints it on a machine of this byte order."""


def listening_addresses() -> list[str]:
    """Addresses, in hexadecimal digits, at which this process listens."""
    mine = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            mine.add(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENS and f"socket:[{words[9]}]" in mine:
                found.append(words[1].split(":")[0])
    return found


def meet(rank: int, port: int, results) -> None:
    os.environ[fixes.INTERFACE_VARIABLE] = fixes.LOOPBACK_INTERFACE
    dist.init_process_group("gloo", init_method=loopback.address_to_meet(port), rank=rank, world_size=2)
    dist.new_group([0, 1], backend="gloo")
    dist.barrier()
    results.put((rank, listening_addresses()))
    dist.barrier()
    dist.destroy_process_group()


def test_ranks_listen_on_the_loopback_interface_only():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = get_context("fork")
    results = fork.SimpleQueue()
    ranks = [fork.Process(target=meet, args=(rank, port, results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    found = dict(results.get() for _ in ranks)
    for rank in ranks:
        rank.join()
    assert {rank: set(addresses) for rank, addresses in found.items()} == {0: {LOOPBACK}, 1: {LOOPBACK}}


@pytest.mark.parametrize(
    ("asked", "override", "expected"),
    [
        pytest.param(None, "", f"{loopback.SCHEME}://127.0.0.1:7", id="nothing is asked for"),
        pytest.param("10.0.0.5:9", "", "as SGLang says", id="an address is asked for"),
        pytest.param(None, "env://", "as SGLang says", id="another method is asked for"),
    ],
)
def test_an_address_that_is_asked_for_is_taken(monkeypatch, asked, override, expected):
    variable = SimpleNamespace(get=lambda: override)
    environ = SimpleNamespace(envs=SimpleNamespace(SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE=variable))
    context = SimpleNamespace(get_parallel=lambda: SimpleNamespace(dist_init_addr=asked, nnodes=1))
    monkeypatch.setitem(sys.modules, "sglang.srt.environ", environ)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    monkeypatch.setenv(fixes.INTERFACE_VARIABLE, "eth7")
    assert fixes.meet_on_loopback(lambda **_: "as SGLang says", dist_port=7) == expected
    assert os.environ[fixes.INTERFACE_VARIABLE] == "eth7"
