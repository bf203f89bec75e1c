"""SGLang's message queues, and how its ranks find their machine, in memory without a name."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from sglang.srt.distributed import parallel_state
from sglang.srt.distributed.device_communicators import shm_broadcast

from sglang_ascend_moe.serving.host import unnamed_memory
from sglang_ascend_moe.serving.host.unnamed_memory import SharedMemory

CREATOR = """
import sys, time
from sglang_ascend_moe.serving.host.unnamed_memory import SharedMemory
memory = SharedMemory("queue", create=True, size=64)
memory.buf[:5] = b"hello"
print(memory.name, flush=True)
time.sleep(600)
"""


def mapped_names() -> set[str]:
    """Of memory in /dev/shm that this process has mapped: names of other processes come and go."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.partition("/dev/shm/")[2] for line in lines} - {""}


@pytest.fixture
def ring_buffer(monkeypatch: pytest.MonkeyPatch) -> type:
    monkeypatch.setattr(shm_broadcast, "shared_memory", unnamed_memory)
    return shm_broadcast.ShmRingBuffer


def test_a_ring_buffer_of_sglang_has_no_name_at_any_moment(ring_buffer):
    names = mapped_names()
    buffer = ring_buffer(n_reader=1, max_chunk_bytes=16, max_chunks=2)
    assert mapped_names() <= names
    rebuild, arguments = buffer.__reduce__()
    reader = rebuild(*arguments)
    with buffer.get_data(1) as written:
        written[:4] = b"rows"
    with reader.get_data(1) as read:
        assert bytes(read[:4]) == b"rows"
    assert reader.shared_memory.size == buffer.total_bytes_of_buffer


def test_a_reader_keeps_the_memory_of_a_creator_that_was_killed():
    with subprocess.Popen([sys.executable, "-c", CREATOR], stdout=subprocess.PIPE, text=True) as creator:
        name = creator.stdout.readline().strip()
        memory = SharedMemory(name)
        creator.kill()
        assert creator.wait() == -signal.SIGKILL
    assert bytes(memory.buf[:5]) == b"hello"
    memory.close()
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_ranks_find_that_they_are_on_one_machine_without_a_name_at_any_moment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parallel_state, "shared_memory", unnamed_memory)
    names = mapped_names()
    told, read = [], []

    def broadcast(objects: list, **_: object) -> None:
        assert mapped_names() <= names
        told.extend(objects)

    def wait(**_: object) -> None:
        # A rank that opens the memory after its creator has closed it.
        reader = SharedMemory(*told)
        read.append(bytes(reader.buf[:13]))
        reader.close()

    ours = parallel_state.torch.distributed
    monkeypatch.setattr(ours, "get_backend", lambda *_, **__: "gloo")
    monkeypatch.setattr(ours, "get_rank", lambda *_, **__: 0)
    monkeypatch.setattr(ours, "get_world_size", lambda *_, **__: 1)
    monkeypatch.setattr(ours, "get_process_group_ranks", lambda *_: [0])
    monkeypatch.setattr(ours, "broadcast_object_list", broadcast)
    monkeypatch.setattr(ours, "barrier", wait)
    monkeypatch.setattr(ours, "all_reduce", lambda *_, **__: None)
    assert parallel_state.in_the_same_node_as(None) == [True]
    assert read == [b"magic_message"]
    with pytest.raises(FileNotFoundError):
        SharedMemory(*told)


def test_another_file_under_the_same_numbers_is_not_taken_for_the_memory(ring_buffer, tmp_path: Path):
    with (tmp_path / "other").open("w+b") as other:
        name = f"{os.getpid()}.{other.fileno()}.queue"
        with pytest.raises(FileNotFoundError, match="is not the memory queue"):
            SharedMemory(name)
        assert not hasattr(ring_buffer(1, 16, 2, name), "shared_memory"), "SGLang expects this of another machine"


def test_the_descriptors_are_given_back():
    descriptors = set(os.listdir("/proc/self/fd"))
    memory = SharedMemory("queue", create=True, size=64)
    SharedMemory(memory.name).close()
    memory.close()
    memory.unlink()
    assert set(os.listdir("/proc/self/fd")) <= descriptors


def test_memory_of_a_process_in_another_network_is_that_of_another_machine(monkeypatch: pytest.MonkeyPatch):
    memory = SharedMemory("queue", create=True, size=64)
    read = os.readlink
    elsewhere = {"/proc/self/ns/net": "net:[1]"}
    monkeypatch.setattr(os, "readlink", lambda path: elsewhere.get(path) or read(path))
    with pytest.raises(FileNotFoundError, match="is not the memory queue"):
        SharedMemory(memory.name)
    memory.close()
    memory.unlink()
