"""The ports of servers."""

import random
import socket

from sglang_ascend_moe.launch.servers import server_process
from sglang_ascend_moe.launch.servers.server_process import DRAWN_PORTS, EPHEMERAL_PORTS, free_port


def test_a_free_port_is_never_given_to_a_connection():
    first, last = map(int, EPHEMERAL_PORTS.read_text().split())
    ports = [free_port() for _ in range(20)]
    assert len(set(ports)) > 1
    for port in ports:
        assert not first <= port <= last
        assert not any(port in drawn for drawn in DRAWN_PORTS)
        socket.create_server(("127.0.0.1", port)).close()


def test_a_port_is_given_once_though_its_server_does_not_listen_yet(monkeypatch):
    monkeypatch.setattr(random, "sample", lambda ports, _count: list(ports))
    given = [free_port(), free_port(3), free_port()]
    assert given == sorted(set(given))
    assert given[2] > given[1] + 3


def test_those_that_follow_a_free_port_are_free_too(monkeypatch):
    monkeypatch.setattr(server_process, "is_taken", lambda _host, port: port % 10 == 0)
    assert {free_port(8) % 10 for _ in range(20)} == {1}
