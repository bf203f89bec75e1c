"""A deployment as child processes of this one: started together, watched together, stopped together."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.exchange.control.instance import require_pair
from sglang_ascend_moe.exchange.control.network import PORTS_AFTER
from sglang_ascend_moe.exchange.control.secret import read_secret
from sglang_ascend_moe.launch.disagg.deployment import Deployment, RoleName
from sglang_ascend_moe.launch.disagg.deployment_events import (
    Failed,
    Failure,
    Ready,
    Serving,
    Starting,
    Stopped,
    Teller,
    Waiting,
)
from sglang_ascend_moe.launch.disagg.router_flags import WATCHFUL
from sglang_ascend_moe.launch.disagg.server_flags import NodePlace, Target, server_flags
from sglang_ascend_moe.launch.servers.forked_server import ForkedServer, import_sglang
from sglang_ascend_moe.launch.servers.server_process import ServerProcess, free_port, log_tail
from sglang_ascend_moe.serving.host.memory_share import MemoryLeft, memory_left, share_of_ranks
from sglang_ascend_moe.serving.host.reservations import outstanding
from sglang_ascend_moe.serving.http_client import answered
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.machine_limits import read_limits
from sglang_ascend_moe.serving.options import FLAGS
from sglang_ascend_moe.serving.stages import Stage
from sglang_ascend_moe.serving.worker.pairing import ask_instance

POLL_SECONDS = 0.5
PROBE_SECONDS = 60.0
ROUTER = "router"
KV_STORE = "ASCEND_MF_STORE_URL"
LOOPBACK = "127.0.0.1"
ON_ONE_MACHINE = {"GLOO_SOCKET_IFNAME": "lo"}
"""In the environment of a node; gloo would take the interface of the host's name."""
_HOST_MEMORY = FLAGS["host_memory"].flag.removeprefix("--")


class Member(NamedTuple):
    """One node of a server of the deployment. `role` is None for the router, `bootstrap_port` 0 where there is none."""

    name: str
    role: RoleName | None
    process: ServerProcess
    bootstrap_port: int = 0
    node: int = 0


class MemberFailed(Exception):
    """A member ended or was not ready in time, so that the whole deployment ends."""

    def __init__(self, why: str, member: Member, code: Failure, *, log_says_why: bool = True) -> None:
        super().__init__(f"{member.name}: {why}")
        log = member.process.log
        self.event = Failed(
            name=member.name, code=code, why=why, log=str(log), log_tail=log_tail(log) if log_says_why else ""
        )


def import_told(tell: Teller) -> None:
    """Import what servers are forked with. Raises `ServerFailed` if this process cannot fork afterwards."""
    begun = time.monotonic()
    tell(Waiting(name="up", seconds=0.0, stage="importing SGLang"))
    import_sglang()
    tell(Ready(name="up", seconds=time.monotonic() - begun))


class RunningDeployment:
    """The servers of `deployment` on this machine, their output in `logs`. A context manager that ends all of them.

    A member that ends takes the others with it: `start` and `watch` raise `MemberFailed`.
    """

    def __init__(self, deployment: Deployment, logs: Path, tell: Teller, target: Target = "host") -> None:
        self._deployment = deployment
        self._logs = logs
        self._tell = tell
        self._target = target
        self._npus_given = 0
        self._store = f"tcp://{LOOPBACK}:{free_port()}"
        self._members: list[Member] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(at_once=isinstance(error, MemberFailed))

    @property
    def instances(self) -> list[Member]:
        """Servers but for the router; of those with several nodes the first, which answers requests."""
        return [member for member in self._members if member.role is not None and member.node == 0]

    def start_instances(self, timeout: float) -> None:
        """Start prefill and decode servers together, and return when all of them answer. Raises `MemberFailed`.

        On the host they are forked from this process, which has to have imported SGLang: see `import_told`.
        """
        left = memory_left(read_limits(), outstanding())
        for role, settings in self._deployment.roles.items():
            for number in range(settings.instances):
                self._start_instance(role, number, left)
        self._wait_until_ready(timeout)
        self._compare_instances()

    def start_router(self, timeout: float) -> None:
        """Start the router, and return when a token came through it. Raises `MemberFailed`."""
        router = self._deployment.router
        process = ServerProcess(
            self.router_arguments(), self._logs / f"{ROUTER}.log", module="sglang_router.launch_router",
            host=router.host, port=router.port or None,
        )  # fmt: skip
        self._begin(Member(ROUTER, None, process))
        self._wait_until_ready(timeout)
        self._wait_for_token(timeout)
        urls = {role: [m.process.url for m in self.instances if m.role == role] for role in self._deployment.roles}
        # Before it is told: whoever reads it may interrupt at once.
        interrupts.serve_from_now_on()
        self._tell(Serving(url=process.url, **urls))

    def router_arguments(self) -> list[str]:
        """The router's command line, its own address left out."""
        arguments = ["--pd-disaggregation", "--policy", "round_robin", "--prometheus-port", str(free_port()), *WATCHFUL]
        if self._deployment.router.kind == "mini-lb":
            arguments = ["--pd-disaggregation", "--policy", "random", "--mini-lb"]
        for member in self.instances:
            arguments += [f"--{member.role}", member.process.url]
            if member.role == "prefill":
                arguments.append(str(member.bootstrap_port))
        return arguments

    def watch(self) -> None:
        """Return never. Raises `MemberFailed` when a member ends."""
        while True:
            self._raise_if_one_ended()
            time.sleep(POLL_SECONDS)

    def stop(self, *, at_once: bool) -> None:
        """End every member. `at_once`: the router is killed, so that its clients learn of it now."""
        for member in reversed(self._members):
            if at_once and member.name == ROUTER:
                member.process.kill()
            elif member.node == 0 and member.process.exit_code is None:
                # Others are stopped by their node 0: if one of them stopped first, that would be its server's fault.
                member.process.interrupt()
        # Told when all have ended: whoever reads may be gone.
        stopped = [Stopped(name=member.name, by_itself=member.process.stop()) for member in reversed(self._members)]
        self._members.clear()
        for event in stopped:
            self._tell(event)

    def _start_instance(self, role: RoleName, number: int, left: MemoryLeft) -> None:
        settings = self._deployment.roles[role]
        bootstrap_port = free_port()
        dist_address = f"{LOOPBACK}:{free_port(PORTS_AFTER)}"
        first_npu = self._npus_given
        self._npus_given += settings.ranks
        # Node 0 last, and so the first that is stopped.
        for node in reversed(range(settings.nodes)):
            name = settings.member_name(role, number, node)
            log = self._logs / f"{name}.log"
            flags = server_flags(
                self._deployment, role, self._target, NodePlace(bootstrap_port, str(node), dist_address)
            )
            variables = ON_ONE_MACHINE if settings.nodes > 1 else {}
            if self._target == "ascend":
                # SGLang gives a node the NPUs from this one on; memfabric's engines meet at the store.
                flags += ["--base-gpu-id", str(first_npu + node * settings.ranks_per_node)]
                process = ServerProcess(flags, log, variables={KV_STORE: self._store, **variables})
            else:
                if _HOST_MEMORY not in settings.options:
                    share = share_of_ranks(left, settings.ranks, self._deployment.ranks)
                    flags += [f"--{_HOST_MEMORY}", str(share)]
                process = ForkedServer(flags, log, variables=variables)
            self._begin(Member(name, role, process, bootstrap_port, node))

    def _compare_instances(self) -> None:
        """Every prefill instance has to fit every decode instance: the router may pair any of them."""
        secret = read_secret(self._deployment.secret_file)
        described = {}
        for member in self.instances:
            try:
                described[member.name] = ask_instance(member.process.url, secret=secret)
            except (OSError, ProtocolMismatch) as error:
                raise MemberFailed(f"does not say what it is: {error}", member, Failure.NOT_DESCRIBED) from error
        for prefill in (member for member in self.instances if member.role == "prefill"):
            for decode in (member for member in self.instances if member.role == "decode"):
                try:
                    require_pair(described[prefill.name], described[decode.name])
                except ProtocolMismatch as error:
                    raise MemberFailed(
                        f"does not fit {prefill.name}: {error}", decode, Failure.DO_NOT_FIT, log_says_why=False
                    ) from error

    def _begin(self, member: Member) -> None:
        process = member.process
        with interrupts.held():
            process.start()
            self._members.append(member)
        self._tell(Starting(name=member.name, url=process.url, pid=process.pid, log=str(process.log)))

    def _wait_until_ready(self, timeout: float) -> None:
        waiting = {member.name: member for member in self._members if not member.process.answers()}
        stages: dict[str, Stage] = {}
        while waiting:
            self._raise_if_one_ended()
            for name, member in list(waiting.items()):
                process = member.process
                if process.answers():
                    self._tell(Ready(name=name, seconds=process.seconds))
                    del waiting[name]
                elif process.seconds > timeout:
                    raise MemberFailed(f"was not ready after {timeout:.0f} s", member, Failure.NOT_READY)
                elif member.role is not None and (now := process.stage) != stages.get(name):
                    stages[name] = now
                    self._tell(Waiting(name=name, seconds=process.seconds, stage=now.value))
            time.sleep(POLL_SECONDS)

    def _wait_for_token(self, timeout: float) -> None:
        """The router answers before it knows its servers; ready is who has passed a prompt through all of them."""
        router = self._members[-1]
        while problem := _problem_of(router.process.url):
            self._raise_if_one_ended()
            if router.process.seconds > timeout:
                raise MemberFailed(
                    f"no token came through it within {timeout:.0f} s: {problem}", router, Failure.NO_TOKEN
                )
            time.sleep(POLL_SECONDS)

    def _raise_if_one_ended(self) -> None:
        ended = [(member, code) for member in self._members if (code := member.process.exit_code) is not None]
        # The other nodes of a server end with the one that was killed.
        for member, code in sorted(ended, key=lambda one: one[1] >= 0):
            if member.process.found_port_taken:
                raise MemberFailed(
                    f"another program has taken its port {member.process.port}; start again", member, Failure.PORT_TAKEN
                )
            raise MemberFailed(f"the server {cause(code)}", member, Failure.SERVER_ENDED)


def _problem_of(url: str) -> str:
    """What goes wrong when a router is asked for one token; empty if that comes."""
    body = {"text": "a", "sampling_params": {"max_new_tokens": 1, "temperature": 0}}
    try:
        with answered("POST", f"{url}/generate", body=body, timeout=PROBE_SECONDS) as answer:
            return "" if answer.ok else f"{answer.status_code} {answer.reason}"
    except OSError as error:
        return str(error)


def cause(code: int) -> str:
    """How a process ended, by its exit code; a shell's and SGLang's 128 + n stands for signal n as well."""
    number = -code if code < 0 else code - 128
    try:
        return f"was ended by {signal.Signals(number).name}"
    except ValueError:
        return f"ended with exit code {code}"
