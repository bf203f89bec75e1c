"""What has to run on each Ascend A3 machine of a deployment: commands, environment and window sizes.

No NPU has run any of it: names and meanings of flags and variables are those of SGLang 0.5.23 and its documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.disagg.deployment import Deployment, RoleName
from sglang_ascend_moe.launch.disagg.router_flags import WATCHFUL
from sglang_ascend_moe.launch.disagg.server_flags import NodePlace, server_flags, written
from sglang_ascend_moe.launch.plan.memory_plan import MemoryPlan
from sglang_ascend_moe.launch.plan.moe_config import MoeShape
from sglang_ascend_moe.launch.plan.server_window import hccl_buffer_mb, plan_server_window
from sglang_ascend_moe.launch.plan.sizes import exactly
from sglang_ascend_moe.serving.launcher import given_flags
from sglang_ascend_moe.serving.options import FLAGS, Options
from sglang_ascend_moe.serving.worker.sizing import SchedulerLimits

NOT_RUN = "Nothing of this has run on an NPU yet."
EVERYWHERE = "0.0.0.0"


class MachineAddress(NamedTuple):
    """How others reach a machine: its host name or address, or what the platform puts there."""

    host: str
    leader: str
    node_rank: str


class Node(NamedTuple):
    """One machine of one instance. `plan`: the window of each of its ranks."""

    name: str
    role: RoleName
    instance: int
    rank: int
    arguments: list[str]
    environment: dict[str, str]
    plan: MemoryPlan


def nodes(deployment: Deployment, shape: MoeShape) -> list[Node]:
    """The machines of a deployment whose addresses are listed, instance by instance. Raises `InvalidInput`."""
    found = []
    store = f"tcp://{addresses(deployment, 'prefill')[0]}:{deployment.ascend.kv_store_port}"
    for name, role in deployment.roles.items():
        machines = addresses(deployment, name)
        plan = window_plan(deployment, name, shape)
        for instance in range(role.instances):
            for rank in range(role.nodes):
                own, leader = machines[instance * role.nodes + rank], machines[instance * role.nodes]
                found.append(
                    Node(
                        name=role.member_name(name, instance, rank),
                        role=name,
                        instance=instance,
                        rank=rank,
                        arguments=arguments(deployment, name, MachineAddress(own, leader, str(rank)), plan),
                        environment=environment(deployment, name, plan, store) | {"SGLANG_HOST_IP": own},
                        plan=plan,
                    )
                )
    return found


def addresses(deployment: Deployment, name: RoleName) -> list[str]:
    """Addresses of the machines of a role. Raises `InvalidInput` if there are not as many as it needs."""
    role = deployment.roles[name]
    listed = getattr(deployment.ascend, f"{name}_addresses")
    if len(listed) != role.instances * role.nodes:
        raise InvalidInput(
            f"ascend.{name}_addresses: {len(listed)} addresses for {role.instances} instances of {role.nodes} nodes"
        )
    return list(listed)


def check_machines(deployment: Deployment) -> None:
    """Raise `InvalidInput` if a role needs more NPUs than its machines have, or no container can have the secret."""
    secret = deployment.secret_file
    if secret is not None and not secret.startswith("/"):
        raise InvalidInput(f"secret_file {secret}: give the whole path, which is the same on every machine")
    for name, role in deployment.roles.items():
        if role.ranks_per_node > deployment.ascend.npus_per_node:
            raise InvalidInput(
                f"{name}.nodes {role.nodes}: {role.ranks} ranks need {role.ranks_per_node} NPUs on each, and"
                f" ascend.npus_per_node is {deployment.ascend.npus_per_node}"
            )


def window_plan(deployment: Deployment, name: RoleName, shape: MoeShape) -> MemoryPlan:
    """The window of each rank: what a batch of the role needs, or `window_bytes`.

    Raises `InvalidInput` and `WindowTooSmall` as a server does when it opens its exchanges.
    """
    role = deployment.roles[name]
    given = given_flags.read(server_flags(deployment, name, "ascend", NodePlace(deployment.ascend.bootstrap_port)))
    options = given.options or Options()
    # SGLang gives each attention group its part of requests and chunks, rounded down; ranks of a group share its batch.
    requests, chunk = (
        size // role.dp_size * role.dp_size for size in (role.max_running_requests, role.chunked_prefill_size)
    )
    limits = SchedulerLimits(requests, chunk, "--chunked-prefill-size", role.tp_size, name)
    return plan_server_window(shape, given.settings, options, limits)


def arguments(deployment: Deployment, name: RoleName, address: MachineAddress, plan: MemoryPlan) -> list[str]:
    """The command of one machine."""
    ascend = deployment.ascend
    role = deployment.roles[name]
    place = NodePlace(ascend.bootstrap_port, address.node_rank, f"{address.leader}:{ascend.dist_port}")
    listening: dict[str, str | int] = {"host": EVERYWHERE if role.nodes > 1 else address.host, "port": ascend.port}
    flags = server_flags(deployment, name, "ascend", place)
    planned = {FLAGS["max_tokens"].flag: plan.parameters.max_tokens, FLAGS["window_bytes"].flag: plan.memory.total}
    windows = {flag.removeprefix("--"): value for flag, value in planned.items() if flag not in flags}
    return ["python", "-m", "sglang.launch_server", *written(listening), *flags, *written(windows)]


def environment(deployment: Deployment, name: RoleName, plan: MemoryPlan, store: str) -> dict[str, str]:
    """What SGLang, HCCL and memfabric read from the environment, apart from the machine's own address."""
    role = deployment.roles[name]
    return {
        "ASCEND_MF_STORE_URL": store,
        # Pooled memory of the A3; an A2 has none and needs device_rdma.
        "ASCEND_MF_TRANSFER_PROTOCOL": "sdma",
        "HCCL_BUFFSIZE": str(hccl_buffer_mb(plan, role.tp_size // role.dp_size)),
        "HCCL_SOCKET_IFNAME": deployment.ascend.interface,
        "GLOO_SOCKET_IFNAME": deployment.ascend.interface,
        "PYTORCH_NPU_ALLOC_CONF": "expandable_segments:True",
        # A decode instance notices a prefill instance that is gone within 10 seconds.
        "SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL": "2",
        "SGLANG_DISAGGREGATION_HEARTBEAT_MAX_FAILURE": "2",
    }


def router_arguments(deployment: Deployment, host_of: Callable[[RoleName, int], str]) -> list[str]:
    """The router's command; `host_of` gives the host of node 0 of an instance."""
    router, ascend = deployment.router, deployment.ascend
    words = ["python", "-m", "sglang_router.launch_router", "--pd-disaggregation"]
    words += ["--host", EVERYWHERE, "--port", str(router.port or 8000)]
    words += ["--mini-lb"] if router.kind == "mini-lb" else WATCHFUL
    for name, role in deployment.roles.items():
        for instance in range(role.instances):
            words += [f"--{name}", f"http://{host_of(name, instance)}:{ascend.port}"]
            if name == "prefill":
                words.append(str(ascend.bootstrap_port))
    return words


def listed_router_arguments(deployment: Deployment) -> list[str]:
    """The router's command where the machines' addresses are listed."""
    return router_arguments(
        deployment, lambda name, instance: addresses(deployment, name)[instance * deployment.roles[name].nodes]
    )


def window_notes(plans: Mapping[RoleName, MemoryPlan]) -> list[str]:
    """A line per role about its windows."""
    return [
        f"{name}: {plan.parameters.max_tokens} tokens per rank, windows of {exactly(plan.memory.total)} on each of"
        f" {plan.parameters.ranks} ranks"
        for name, plan in plans.items()
    ]
