"""The controller of data parallelism waits for requests, and schedulers, which receive by the same function, do not."""

import argparse
from collections.abc import Iterator
from typing import Any

import pytest
import zmq

from sglang_ascend_moe.serving import plugin
from sglang_ascend_moe.serving.host import fixes


@pytest.fixture
def sockets() -> Iterator[tuple[Any, Any]]:
    with zmq.Context() as context, context.socket(zmq.PUSH) as sender, context.socket(zmq.PULL) as receiver:
        receiver.bind("inproc://requests")
        sender.connect("inproc://requests")
        yield sender, receiver


def test_the_controller_waits_and_gets_what_comes_as_before(sockets, monkeypatch):
    from sglang.srt.managers.io_struct import FlushCacheReqInput, sock_recv, sock_send

    waits = []
    sender, receiver = sockets
    controller = argparse.Namespace(recv_from_tokenizer=receiver)
    fixes.receive_without_spinning(controller)
    poll = receiver.poll
    monkeypatch.setattr(zmq.Socket, "poll", lambda _socket, milliseconds: waits.append(milliseconds) or poll(1))
    with pytest.raises(zmq.Again):
        sock_recv(controller.recv_from_tokenizer, flags=zmq.NOBLOCK)
    sock_send(sender, FlushCacheReqInput())
    assert isinstance(sock_recv(controller.recv_from_tokenizer, flags=zmq.NOBLOCK), FlushCacheReqInput)
    assert waits == [fixes.RECEIVE_MILLISECONDS] * 2


def test_no_hook_changes_how_all_processes_receive():
    assert [hook.target for hook in plugin.TABLE if hook.target.endswith("sock_recv")] == []
