"""A window is handed to the processes of ranks only, whoever else calls or listens."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from sglang_ascend_moe.errors import PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import Hello, WindowHandle
from sglang_ascend_moe.exchange.control.handover import Offer, exchange_windows, open_listener
from sglang_ascend_moe.exchange.control.machine import this_machine
from sglang_ascend_moe.exchange.control.rendezvous import BRING_UP
from sglang_ascend_moe.windows.layout import ExchangeParameters
from tests.security.drawn_blocks import SESSION

PARAMETERS = ExchangeParameters(ranks=2, num_experts=8, hidden=64, max_tokens=16, topk=2)


def hello(rank: int, process: int, address: bytes) -> Hello:
    return Hello(
        session=SESSION, rank=rank, layout_version=1, parameters=PARAMETERS, process=process, address=address, cores=[],
        workers=1, node=None, machine=this_machine(),
    )  # fmt: skip


@pytest.fixture
def offers() -> Iterator[list[Offer]]:
    """Of ranks 0 and 1, with a memory each."""
    with ExitStack() as opened:
        made = []
        for rank in range(2):
            memory = os.memfd_create("window")
            opened.callback(os.close, memory)
            handle = WindowHandle(session=SESSION, rank=rank, total_bytes=0, layout_digest=bytes(16))
            made.append(Offer(handle, memory))
        yield made


@pytest.fixture
def watch_itself() -> Iterator[int]:
    descriptor = os.pidfd_open(os.getpid())
    yield descriptor
    os.close(descriptor)


class Child:
    """A process that runs `program` and ends with the number it returns."""

    def __init__(self, program: Callable[[socket.socket], int]) -> None:
        self.ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.ours.close()
            os._exit(program(theirs))
        theirs.close()

    def returned(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def listen_as_stranger(parent: socket.socket) -> int:
    with open_listener() as listener:
        parent.send(listener.getsockname())
        caller, _ = listener.accept()
        with caller:
            return len(socket.recv_fds(caller, 4096, 1)[1])


def test_a_rank_calls_nobody_but_the_process_of_the_other_rank(offers, watch_itself):
    stranger = Child(listen_as_stranger)
    with open_listener() as listener:
        hellos = [hello(0, os.getpid(), stranger.ours.recv(100)), hello(1, os.getpid(), listener.getsockname())]
        with pytest.raises(ProtocolMismatch, match=rf"process {stranger.pid} of user \d+ listens where rank 0"):
            exchange_windows(hellos, offers[1], listener, [watch_itself, -1])
    assert stranger.returned() == 0, "the stranger was handed a window"


def test_another_user_is_not_called(offers, watch_itself, monkeypatch):
    with open_listener() as elsewhere, open_listener() as listener:
        hellos = [hello(0, os.getpid(), elsewhere.getsockname()), hello(1, os.getpid(), listener.getsockname())]
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        with pytest.raises(ProtocolMismatch, match=f"of user {user} listens where rank 0"):
            exchange_windows(hellos, offers[1], listener, [watch_itself, -1])


def call_as_stranger(parent: socket.socket) -> int:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as call:
        call.connect(parent.recv(100))
        with suppress(OSError):
            socket.send_fds(call, [b"let me in"], [])
        parent.send(b"called")
        try:
            return len(socket.recv_fds(call, 4096, 1)[1])
        except ConnectionResetError:
            return 0


def test_a_stranger_who_calls_is_turned_away_and_the_rank_is_served(offers, watch_itself):
    stranger = Child(call_as_stranger)
    results: dict[int, list[int]] = {}
    with open_listener() as listener, open_listener() as unused:
        hellos = [hello(0, os.getpid(), listener.getsockname()), hello(1, os.getpid(), unused.getsockname())]
        stranger.ours.send(listener.getsockname())
        assert stranger.ours.recv(10) == b"called"

        def be(rank: int) -> None:
            pidfds = [-1 if peer == rank else watch_itself for peer in range(2)]
            results[rank] = exchange_windows(hellos, offers[rank], (listener, unused)[rank], pidfds)

        threads = [threading.Thread(target=be, args=(rank,)) for rank in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert stranger.returned() == 0, "the stranger was handed a window"
    for rank, descriptors in results.items():
        [window] = [descriptor for descriptor in descriptors if descriptor >= 0]
        assert os.fstat(window).st_ino == os.fstat(offers[1 - rank].window).st_ino
        os.close(window)
    assert set(results) == {0, 1}


def test_another_user_who_calls_is_turned_away(offers, watch_itself, monkeypatch):
    stranger = Child(call_as_stranger)
    with open_listener() as listener:
        # Of the awaited process by its id, but of another user.
        hellos = [hello(0, os.getpid(), listener.getsockname()), hello(1, stranger.pid, b"\0none")]
        stranger.ours.send(listener.getsockname())
        assert stranger.ours.recv(10) == b"called"
        user = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
        with pytest.raises(PeerTimeout):
            exchange_windows(hellos, offers[0], listener, [-1, watch_itself], BRING_UP._replace(seconds=0.5))
    assert stranger.returned() == 0, "the stranger was handed a window"
