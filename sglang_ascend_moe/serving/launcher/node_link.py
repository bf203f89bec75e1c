"""The launchers of a server's nodes while it runs: the end of one is the end of all, and all know whose it is."""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from importlib.metadata import version

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.channel import Channel
from sglang_ascend_moe.serving.launcher.node_blocks import NodeAccount, NodeLeaves, NodeStops, decode, encode
from sglang_ascend_moe.serving.launcher.node_meeting import Nodes
from sglang_ascend_moe.serving.launcher.process_reports import Finding, Report


class NodeLink:
    """This launcher's channels to those of other nodes. Node 0 passes on what it hears."""

    def __init__(self, nodes: Nodes) -> None:
        self.own = nodes.own
        self._channels = dict(nodes.channels)
        self._accounts: dict[int, NodeAccount] = {}
        self._version = version("sglang-ascend-moe")
        self._left: set[int] = set()
        self._closing = False
        self.stopped: int | None = None
        """On other nodes than 0: the exit code of node 0, if that was stopped by who started it."""

    def watch(self, failed: Callable[[], None], stopped: Callable[[], None]) -> None:
        """From now on calls, on a thread of its own: `failed()` when another node ends or is gone; `stopped()` when
        node 0 was stopped."""
        threading.Thread(target=self._run, args=(failed, stopped), daemon=True).start()

    def tell(self, reports: list[Report], findings: list[Finding]) -> None:
        """This node ends: what is known of its processes."""
        self._send_all(encode(self._account(self.own, reports, findings)))

    def stop(self, code: int) -> None:
        """This node was stopped, and ends with `code`."""
        self._closing = True
        self._send_all(encode(NodeStops(version=self._version, node=self.own, code=code)))

    def leave(self) -> None:
        """This node is another than 0, and its ranks have ended as they should."""
        self._closing = True
        self._send_all(encode(NodeLeaves(version=self._version, node=self.own)))

    def accounts(self) -> list[NodeAccount]:
        """What other nodes have said."""
        return list(self._accounts.values())

    def close(self) -> None:
        """Other nodes see this one as gone, unless they were told before."""
        self._closing = True
        # The thread that listens may drop one meanwhile.
        for channel in list(self._channels.values()):
            channel.close()

    def _account(self, node: int, reports: list[Report], findings: list[Finding]) -> NodeAccount:
        return NodeAccount(version=self._version, node=node, reports=reports, findings=findings)

    def _send_all(self, data: bytes, but: int | None = None) -> None:
        for node, channel in list(self._channels.items()):
            if node != but:
                try:
                    channel.send(data)
                except OSError:
                    # Its end is noticed by whoever takes from it.
                    continue

    def _run(self, failed: Callable[[], None], stopped: Callable[[], None]) -> None:
        while self._channels and not self._closing:
            poll = select.poll()
            for channel in self._channels.values():
                poll.register(channel, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll()}
            for node, channel in list(self._channels.items()):
                if channel.fileno() in ready and not self._closing:
                    self._hear(node, channel, failed, stopped)

    def _hear(self, node: int, channel: Channel, failed: Callable[[], None], stopped: Callable[[], None]) -> None:
        """What the launcher of `node` says, or that it says nothing any more."""
        try:
            while (data := channel.take(f"the launcher of node {node}")) is not None:
                block = decode(data, NodeAccount | NodeStops | NodeLeaves, self._version, f"node {node}")
                if isinstance(block, NodeLeaves):
                    self._left.add(block.node)
                elif isinstance(block, NodeAccount):
                    self._note(block, failed)
                elif self.own == 0:
                    self._note(self._loss(block.node, "it was stopped (Ctrl-C or SIGTERM there)"), failed)
                else:
                    self.stopped = block.code
                    stopped()
        except (EOFError, OSError, ProtocolMismatch) as error:
            del self._channels[node]
            channel.close()
            expected = node in self._left or node in self._accounts or self.stopped is not None
            if not (expected or self._closing):
                self._note(self._loss(node, f"the launcher was killed, or its machine is gone ({error})"), failed)

    def _note(self, account: NodeAccount, failed: Callable[[], None]) -> None:
        self._accounts[account.node] = account
        if self.own == 0:
            self._send_all(encode(account), but=account.node)
        failed()

    def _loss(self, node: int, fault: str) -> NodeAccount:
        return self._account(node, [], [Finding(0, fault, killed=True, node=node)])
