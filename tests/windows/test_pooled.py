"""Windows in pooled memory, over stand-ins for the libraries that give it. No NPU has run this."""

from __future__ import annotations

import os
import re

import pytest
import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.windows import aclshmem, memfabric, pooled
from sglang_ascend_moe.windows.device import DeviceWindow, Place, lack_of_memory, refuse_bases
from tests.windows.pooled_stand_ins import FREE, GAP, in_place_of_devices

MIB = 1 << 20
HOST = "127.0.0.1"


@pytest.fixture
def shared(tmp_path):
    with in_place_of_devices(tmp_path) as shared:
        yield shared


def place(provider, rank: int = 1, ranks: int = 3, size: int = 2 * MIB + 1) -> Place:
    return Place(rank, [0] * ranks, 0, size, provider.meeting(HOST))


def test_memfabric_tells_where_the_window_of_each_rank_is(shared):
    pool = memfabric.open_pool(place(memfabric))
    assert [base - pool.bases[0] for base in pool.bases] == [0, 4 * MIB + GAP, 2 * (4 * MIB + GAP)]
    pool.release()
    assert shared.calls == ["smem_init", "smem_shm_init", "smem_shm_create", "smem_shm_destroy", "smem_shm_uninit"]


def test_windows_of_memfabric_share_a_connection_which_ends_with_the_last(shared):
    first, second = (memfabric.open_pool(place(memfabric)) for _ in range(2))
    assert set(first.bases).isdisjoint(second.bases)
    first.release()
    assert "smem_shm_uninit" not in shared.calls
    second.release()
    assert shared.calls.count("smem_shm_init") == 1
    assert shared.calls[-1] == "smem_shm_uninit"


def test_aclshmem_tells_where_the_window_of_each_rank_is(shared):
    pool = aclshmem.open_pool(place(aclshmem))
    distance = pool.bases[1] - pool.bases[0]
    assert distance > 4 * MIB
    assert pool.bases[2] - pool.bases[1] == distance
    pool.release()
    assert shared.calls[-2:] == ["free", "finalize"]


@pytest.mark.usefixtures("shared")
def test_a_window_is_seen_as_tensors_without_a_copy():
    pool = memfabric.open_pool(place(memfabric))
    own, same = (DeviceWindow(pool.bases[1], torch.device("cpu")) for _ in range(2))
    own.view(512, (2, 3), torch.bfloat16).copy_(torch.arange(6).view(2, 3))
    assert same.view(512 + 6, (3,), torch.bfloat16).tolist() == [3, 4, 5]
    assert own.view(0, (0, 3), torch.int8).shape == (0, 3)
    pool.release()


REFUSALS = {
    "memfabric-init": (memfabric, "smem_init", "cannot connect 3 ranks over tcp.*no page of 2 MiB"),
    "memfabric-connect": (memfabric, "smem_shm_init", "cannot connect 3 ranks over tcp.*npu-smi info"),
    "memfabric-memory": (memfabric, "smem_shm_create", "no page of 2 MiB.*--mem-fraction-static"),
    "aclshmem-tls": (aclshmem, "set_conf_store_tls", "set_conf_store_tls returned 7.*memfabric"),
    "aclshmem-start": (aclshmem, "init", "heap of .* on NPU 0 .error 7.*--mem-fraction-static"),
    "aclshmem-memory": (aclshmem, "align", "no room for a window of 4194304 bytes .*align failed"),
}


@pytest.mark.parametrize(("provider", "call", "named"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_names_what_to_change_and_leaves_nothing_behind(shared, provider, call, named):
    where = place(provider)
    shared.refuse = call
    with pytest.raises(Unsupported, match=named):
        provider.open_pool(where)
    shared.refuse = ""
    provider.open_pool(where).release()


def test_a_refused_id_of_aclshmem_is_told_to_all_ranks(shared):
    shared.refuse = "get_unique_id"
    with pytest.raises(Unsupported, match=r"cannot make the id .*uniqueid failed"):
        aclshmem.meeting(HOST)


@pytest.mark.parametrize("provider", [memfabric, aclshmem])
def test_a_peer_out_of_reach_is_named_and_the_window_given_back(shared, provider):
    shared.unreachable = {2}
    with pytest.raises(Unsupported, match=r"NPU of rank 2 cannot be reached from that of rank 1.*HCCS"):
        provider.open_pool(place(provider))
    assert shared.calls[-1] in ("smem_shm_uninit", "finalize")


@pytest.mark.usefixtures("shared")
def test_a_process_is_one_rank_of_memfabric():
    pool = memfabric.open_pool(place(memfabric))
    with pytest.raises(Unsupported, match=r"rank 1 of 3.*rank 0 of 2"):
        memfabric.open_pool(place(memfabric, 0, 2))
    pool.release()


@pytest.mark.usefixtures("shared")
def test_the_heap_of_aclshmem_holds_one_window():
    pool = aclshmem.open_pool(place(aclshmem))
    with pytest.raises(Unsupported, match=r"one window per process.*memfabric"):
        aclshmem.open_pool(place(aclshmem))
    pool.release()


def test_addresses_that_kernels_cannot_use_are_refused():
    refuse_bases([512, 1024], "memfabric")
    with pytest.raises(Unsupported, match=r"memfabric put the window of rank 1 at 0x410.*--ascend-moe-windows"):
        refuse_bases([512, 1040], "memfabric")


@pytest.mark.usefixtures("shared")
def test_a_window_larger_than_what_is_left_is_refused_before_it_is_made():
    assert lack_of_memory(FREE, torch.device("cpu")) == ""
    assert re.search("--mem-fraction-static, --ascend-moe-window-bytes", lack_of_memory(FREE + 1, torch.device("cpu")))


def test_the_provider_is_what_is_installed_or_asked_for(monkeypatch):
    installed = {"memfabric": True, "aclshmem": True}
    for name, module in pooled.PROVIDERS.items():
        monkeypatch.setattr(module, "is_installed", lambda name=name: installed[name])
    assert pooled.provider(None) is memfabric
    assert pooled.provider("aclshmem") is aclshmem
    installed["memfabric"] = False
    assert pooled.provider(None) is aclshmem
    with pytest.raises(Unsupported, match="memfabric_hybrid is not installed"):
        pooled.provider("memfabric")
    installed["aclshmem"] = False
    with pytest.raises(Unsupported, match="memfabric_hybrid nor shmem is not installed"):
        pooled.provider(None)


@pytest.mark.usefixtures("shared")
def test_aclshmem_meets_at_the_address_that_other_nodes_reach(monkeypatch):
    monkeypatch.delenv("SHMEM_UID_SESSION_ID", raising=False)
    aclshmem.meeting("127.0.0.2")
    host, _, port = os.environ["SHMEM_UID_SESSION_ID"].rpartition(":")
    assert (host, int(port) > 0) == ("127.0.0.2", True)


@pytest.mark.usefixtures("shared")
def test_a_meeting_place_that_the_user_names_is_kept(monkeypatch):
    monkeypatch.delenv("SHMEM_UID_SESSION_ID", raising=False)
    monkeypatch.setenv("SHMEM_UID_SOCK_IFNAME", "eth0:inet4")
    aclshmem.meeting(HOST)
    assert "SHMEM_UID_SESSION_ID" not in os.environ


def test_memfabric_meets_at_the_address_that_other_nodes_reach():
    assert re.fullmatch(r"tcp://127\.0\.0\.2:\d+", memfabric.meeting("127.0.0.2").decode())


@pytest.mark.parametrize("provider", [memfabric, aclshmem])
def test_a_peer_of_another_node_is_named_with_its_node(shared, provider):
    shared.unreachable = {2}
    where = place(provider)._replace(nodes=[0, 0, 1])
    with pytest.raises(Unsupported, match=r"NPU of rank 2 \(node 1\) cannot be reached from that of rank 1 \(node 0\)"):
        provider.open_pool(where)
