"""A server of several nodes: a launcher for each, all on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from sglang_ascend_moe.exchange.control.network import PORTS_AFTER
from sglang_ascend_moe.launch.servers.server_process import (
    ServerFailed,
    ServerProcess,
    free_port,
    group_members,
    log_tail,
)
from sglang_ascend_moe.serving.launcher.engine_processes import title_of

READY_SECONDS = 600.0
END_SECONDS = 15.0
"""In which all nodes have to be gone after a fault; with a stopped rank, ten of them are patience."""
LOOPBACK = "127.0.0.1"
INTERFACE = "GLOO_SOCKET_IFNAME"


class ServerNodes:
    """The launchers, in the order of their nodes; a context manager, in which they are started and ended."""

    def __init__(
        self,
        arguments: Sequence[str],
        nodes: int,
        folder: Path,
        *,
        module: str = "sglang.launch_server",
        address: str = LOOPBACK,
        of_node: Mapping[int, Sequence[str]] | None = None,
        variables: Mapping[int, Mapping[str, str]] | None = None,
    ) -> None:
        """address: of node 0. of_node: what a node is given besides. variables: added to the environment of a node."""
        meeting = ["--nnodes", str(nodes), "--dist-init-addr", f"{address}:{free_port(PORTS_AFTER)}"]
        self.launchers = [
            ServerProcess(
                [*arguments, *meeting, "--node-rank", str(node), *(of_node or {}).get(node, ())],
                folder / f"node{node}.log",
                module=module,
                variables={INTERFACE: "lo", **(variables or {}).get(node, {})},
            )
            for node in range(nodes)
        ]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for launcher in self.launchers:
                stack.enter_context(launcher)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        # Node 0 is stopped first, as its user would, and the others with it.
        self.launchers[0].interrupt()
        self._stack.close()

    @property
    def url(self) -> str:
        return self.launchers[0].url

    def wait_until_ready(self) -> None:
        """Raises `ServerFailed` with the end of each log."""
        try:
            self.launchers[0].wait_until_ready(READY_SECONDS, lambda _progress: None)
        except ServerFailed as error:
            raise ServerFailed(f"{error}\n\n{self.logs()}") from error

    def ranks(self, node: int) -> list[int]:
        """The processes of the ranks of a node, in their order."""
        found = {title_of(pid): pid for pid in group_members(self.launchers[node].pid)}
        return [pid for name, pid in sorted(found.items()) if "scheduler" in name and ("_TP" in name or "_PP" in name)]

    def codes(self, seconds: float = END_SECONDS) -> list[int]:
        """The exit codes, once all have ended; raises `ServerFailed` if that takes one longer than so many seconds."""
        return [launcher.wait_until_ended(seconds) for launcher in self.launchers]

    def last_lines(self) -> list[str]:
        return [(launcher.log.read_text().splitlines() or [""])[-1] for launcher in self.launchers]

    def logs(self) -> str:
        return "\n\n".join(log_tail(launcher.log) for launcher in self.launchers)
