"""The end of one node is the end of all, and every launcher knows whose it is."""

from __future__ import annotations

import queue
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from sglang_ascend_moe.exchange.control.channel import Channel
from sglang_ascend_moe.serving.launcher.ending import root_cause
from sglang_ascend_moe.serving.launcher.node_link import NodeLink
from sglang_ascend_moe.serving.launcher.node_meeting import Nodes
from sglang_ascend_moe.serving.launcher.process_reports import Finding, Report

LONG_S = 60.0
FAILED, STOPPED = "failed", "stopped"


class Launcher(NamedTuple):
    """Of one node. told: what its link has called."""

    link: NodeLink
    told: queue.Queue[str]

    def hear(self) -> str:
        return self.told.get(timeout=LONG_S)

    def known(self) -> tuple[list[Report], list[Finding]]:
        accounts = self.link.accounts()
        return [each for one in accounts for each in one.reports], [each for one in accounts for each in one.findings]


@pytest.fixture
def launchers() -> Iterator[list[Launcher]]:
    """Of three nodes, linked through node 0."""
    ends = [end for _ in range(2) for end in socket.socketpair()]
    channels = [Channel(end, node, None) for end, node in zip(ends, (0, 1, 0, 2), strict=True)]
    for channel in channels:
        channel.begin(time.monotonic() + LONG_S, "the other")
    nodes = [
        Nodes(0, {1: channels[0], 2: channels[2]}, "server"),
        Nodes(1, {0: channels[1]}, "server"),
        Nodes(2, {0: channels[3]}, "server"),
    ]
    made = [Launcher(NodeLink(each), queue.Queue()) for each in nodes]
    for launcher in made:
        launcher.link.watch(lambda told=launcher.told: told.put(FAILED), lambda told=launcher.told: told.put(STOPPED))
    yield made
    for launcher in made:
        launcher.link.close()


def test_a_link_is_closed_while_another_node_goes():
    channels: dict[int, Any] = {}
    for node in (1, 2):
        channels[node] = SimpleNamespace(close=lambda: link._channels.pop(2, None))
    link = NodeLink(Nodes(0, channels, "server"))
    link.close()
    assert list(link._channels) == [1]


@pytest.mark.parametrize("node", [0, 1, 2])
def test_what_a_node_says_of_its_end_is_known_on_all_others(launchers, node):
    report = Report("scheduler_TP3", 11, "ValueError: no such row", False, node)
    finding = Finding(12, "scheduler_TP2 (process 12) was killed, or crashed", True, node)
    launchers[node].link.tell([report], [finding])
    for other in launchers[:node] + launchers[node + 1 :]:
        assert other.hear() == FAILED
        assert other.known() == ([report], [finding])


@pytest.mark.parametrize("node", [0, 1, 2])
def test_a_launcher_that_is_gone_is_named_on_all_others(launchers, node):
    launchers[node].link.close()
    for other in launchers[:node] + launchers[node + 1 :]:
        assert other.hear() == FAILED
        [finding] = other.known()[1]
        assert finding.killed
        cause = root_cause([], [finding])
        assert cause.startswith(f"node {node}: the launcher was killed, or its machine is gone")


def test_a_stop_of_node_0_stops_the_others_with_its_exit_code(launchers):
    launchers[0].link.stop(130)
    launchers[0].link.close()
    for other in launchers[1:]:
        assert other.hear() == STOPPED
        assert (other.link.stopped, other.known()) == (130, ([], []))


def test_a_stop_of_another_node_ends_the_server_by_name(launchers):
    launchers[2].link.stop(0)
    launchers[2].link.close()
    for other in launchers[:2]:
        assert other.hear() == FAILED
        [finding] = other.known()[1]
        assert root_cause([], [finding]) == "node 2: it was stopped (Ctrl-C or SIGTERM there)"


def test_a_node_whose_ranks_have_ended_as_they_should_is_missed_by_nobody(launchers):
    launchers[1].link.leave()
    launchers[1].link.close()
    # Heard after it, by the same threads.
    launchers[2].link.tell([], [Finding(12, "scheduler_TP2 (process 12) was killed, or crashed", True, 2)])
    assert launchers[0].hear() == FAILED
    assert [finding.node for finding in launchers[0].known()[1]] == [2]


def test_processes_of_two_nodes_with_one_number_are_two():
    victim = Report("scheduler_TP0", 11, "PeerLost: rank 1 has died", True, 0)
    killed = Finding(11, "scheduler_TP1 (process 11) was killed, or crashed", True, 1)
    assert root_cause([victim], [killed]) == "node 1: scheduler_TP1 (process 11) was killed, or crashed"


def test_the_first_cause_does_not_depend_on_the_node_that_looks(launchers):
    culprit = Report("scheduler_TP1", 21, "ValueError: no such row", False, 1)
    victims = [Report(f"scheduler_TP{rank}", 20 + rank, "PeerLost: rank 1 failed", True, rank) for rank in (0, 2)]
    for launcher, report in zip(launchers, [victims[0], culprit, victims[1]], strict=True):
        launcher.link.tell([report], [])
    until = time.monotonic() + LONG_S
    while any(len(launcher.known()[0]) < 2 for launcher in launchers) and time.monotonic() < until:
        launchers[0].told.get(timeout=LONG_S) if not launchers[0].told.empty() else None
    own = [victims[0], culprit, victims[1]]
    causes = [root_cause([report, *launcher.known()[0]], []) for launcher, report in zip(launchers, own, strict=True)]
    assert all(one == another for one, another in pairwise(causes))
    assert causes[0] == "node 1: scheduler_TP1 (process 21) raised ValueError: no such row"
