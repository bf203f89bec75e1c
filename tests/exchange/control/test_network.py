"""TCP between nodes: addresses, frames, and who is turned away."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from sglang_ascend_moe.errors import InvalidInput, PeerLost, PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.exchange.control.channel import Channel
from sglang_ascend_moe.exchange.control.network import (
    Address,
    Incoming,
    address_of,
    call,
    framed,
    listen,
    own_host,
    parse_address,
)
from sglang_ascend_moe.exchange.control.secret import Secret

SECRET, OTHER_SECRET = Secret(b"1" * 32), Secret(b"2" * 32)
LONG_S = 30.0


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with listen(Address("127.0.0.1", 0)) as listener:
        ours = call(address_of(listener), time.monotonic() + LONG_S)
        theirs = listener.accept()[0]
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.0.0.1:5000", ("10.0.0.1", 5000)), ("node-0:29500", ("node-0", 29500)), ("[fe80::1]:80", ("fe80::1", 80))],
    ids=["number", "name", "version-6"],
)
def test_an_address_is_read_as_people_write_it(text, address):
    assert parse_address(text) == address
    assert str(parse_address(text)) == text


@pytest.mark.parametrize("text", ["10.0.0.1", ":5000", "host:", "host:port", "host:0", "host:65536"])
def test_what_is_no_address_is_refused_by_the_flag(text):
    with pytest.raises(InvalidInput, match=r"--dist-init-addr .*HOST:PORT"):
        parse_address(text)


def test_the_own_address_is_the_one_from_which_the_other_is_reached():
    assert own_host(Address("127.0.0.1", 9)) == "127.0.0.1"


def test_an_address_without_a_way_is_named():
    with pytest.raises(InvalidInput, match=r"no way from this machine to no-such-host\.invalid:5000"):
        own_host(Address("no-such-host.invalid", 5000))


def test_an_address_of_another_machine_cannot_be_listened_at_and_is_named():
    # Of a network that is kept for documentation.
    with pytest.raises(InvalidInput, match=r"cannot listen at 192\.0\.2\.1:5000 .*--dist-init-addr"):
        listen(Address("192.0.2.1", 5000))


def test_nobody_at_an_address_is_named_when_time_is_over():
    with listen(Address("127.0.0.1", 0)) as listener:
        free = address_of(listener)
    with pytest.raises(PeerTimeout, match=f"nobody answers at {free}"):
        call(free, time.monotonic())


def test_a_call_waits_until_somebody_listens():
    with listen(Address("127.0.0.1", 0)) as listener:
        free = address_of(listener)
    called = threading.Event()
    connections = []

    def reach() -> None:
        called.set()
        connections.append(call(free, time.monotonic() + LONG_S))

    caller = threading.Thread(target=reach)
    caller.start()
    called.wait()
    with listen(free):
        caller.join()
    [connection] = connections
    connection.close()


def test_frames_come_whole_and_in_order_however_they_are_cut(pair):
    ours, theirs = pair
    incoming = Incoming(theirs)
    data = framed(b"first") + framed(b"") + framed(b"third" * 1000)
    for begin in range(0, len(data), 7):
        ours.sendall(data[begin : begin + 7])
    until = time.monotonic() + LONG_S
    assert [incoming.receive(until, "the other") for _ in range(3)] == [b"first", b"", b"third" * 1000]
    assert incoming.take() is None


def test_a_frame_that_announces_too_much_is_refused(pair):
    ours, theirs = pair
    ours.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(PeerLost, match="exceeds"):
        Incoming(theirs).receive(time.monotonic() + LONG_S, "the other")


def test_who_hangs_up_in_the_middle_of_a_frame_is_named(pair):
    ours, theirs = pair
    ours.sendall(framed(b"whole") + framed(b"cut off")[:-1])
    ours.close()
    incoming = Incoming(theirs)
    assert incoming.receive(time.monotonic() + LONG_S, "node 1") == b"whole"
    with pytest.raises(PeerLost, match="node 1 has hung up"):
        incoming.receive(time.monotonic() + LONG_S, "node 1")


def test_who_does_not_answer_is_named(pair):
    with pytest.raises(PeerTimeout, match="node 1 has not answered"):
        Incoming(pair[0]).receive(time.monotonic(), "node 1")


def channels(pair: tuple[socket.socket, socket.socket], secrets: tuple[Secret | None, Secret | None]) -> list[Channel]:
    """Of nodes 0 and 1."""
    opened = [Channel(end, node, secret) for node, (end, secret) in enumerate(zip(pair, secrets, strict=True))]
    for channel in opened:
        channel.begin(time.monotonic() + LONG_S, "the other")
    return opened


@pytest.mark.parametrize("secret", [None, SECRET], ids=["unsealed", "sealed"])
def test_blocks_go_both_ways_and_say_which_node_they_come_from(pair, secret):
    first, second = channels(pair, (secret, secret))
    for number in range(3):
        first.send(b"to 1: %d" % number)
        second.send(b"to 0: %d" % number)
    until = time.monotonic() + LONG_S
    assert [second.receive(until, "") for _ in range(3)] == [b"to 1: 0", b"to 1: 1", b"to 1: 2"]
    assert [first.receive(until, "") for _ in range(3)] == [b"to 0: 0", b"to 0: 1", b"to 0: 2"]
    assert (first.peer, second.peer) == (1, 0)


@pytest.mark.parametrize(
    ("secrets", "said"),
    [((OTHER_SECRET, SECRET), "wrong seal"), ((None, SECRET), "does not seal"), ((SECRET, None), "has no secret")],
    ids=["another", "none there", "none here"],
)
def test_blocks_under_another_secret_are_refused_by_name(pair, secrets, said):
    first, second = channels(pair, secrets)
    first.send(b"block")
    with pytest.raises(ProtocolMismatch, match=f"node 0 .10.0.0.1..*{said}"):
        second.receive(time.monotonic() + LONG_S, "10.0.0.1")


def test_a_block_that_is_sent_again_is_refused(pair):
    first, second = channels(pair, (SECRET, SECRET))
    first.send(b"block")
    frame = pair[1].recv(1 << 16, socket.MSG_PEEK)
    until = time.monotonic() + LONG_S
    assert second.receive(until, "") == b"block"
    pair[0].sendall(frame)
    with pytest.raises(ProtocolMismatch, match="wrong seal"):
        second.receive(until, "")


def test_a_block_of_one_connection_is_refused_over_another(pair):
    first, _ = channels(pair, (SECRET, SECRET))
    first.send(b"block")
    frame = pair[1].recv(1 << 16)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _, other = channels((ours, theirs), (SECRET, SECRET))
        ours.sendall(frame)
        with pytest.raises(ProtocolMismatch, match="wrong seal"):
            other.receive(time.monotonic() + LONG_S, "")
