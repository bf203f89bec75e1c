"""The command line of each role's server, on the host backend and on Ascend."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from sglang_ascend_moe.launch.disagg.deployment import DECIDED, Deployment, Role, RoleName
from sglang_ascend_moe.serving.launcher.given_flags import spellings
from sglang_ascend_moe.serving.options import ASK_FLAG, FLAGS

Target = Literal["host", "ascend"]


class NodePlace(NamedTuple):
    """Of one server: the port at which decode servers ask for it, if it prefills; `node_rank` and `dist_address`
    (host:port of its node 0) where it spans several nodes; the defaults are for flags that are only looked at."""

    bootstrap_port: int
    node_rank: str = "0"
    dist_address: str = "127.0.0.1:5000"


def server_flags(deployment: Deployment, name: RoleName, target: Target, place: NodePlace) -> list[str]:
    """Flags of `python -m sglang.launch_server` for one node of an instance of role `name`, without its own address."""
    role = deployment.roles[name]
    flags = {
        "model-path": deployment.model_path,
        "disaggregation-mode": name,
        **_sizes(role),
        **_role_flags(name, role, target, place),
        **(_HOST if target == "host" else _ASCEND),
        **(_HOST_ROLES if target == "host" else _ASCEND_ROLES)[name],
        **({_REQUIRE_GRAPHS: True} if name == "decode" and not _eager(role) else {}),
        **role.options,
        ASK_FLAG.removeprefix("--"): True,
    }
    if role.nodes > 1:
        flags |= {"nnodes": role.nodes, "node-rank": place.node_rank, "dist-init-addr": place.dist_address}
    if role.window_bytes is not None:
        flags[FLAGS["window_bytes"].flag.removeprefix("--")] = role.window_bytes
    if deployment.secret_file is not None:
        flags[FLAGS["secret_file"].flag.removeprefix("--")] = deployment.secret_file
    if deployment.mixed_sizes:
        flags[FLAGS["mixed_sizes"].flag.removeprefix("--")] = True
    return written(flags)


def key_of(deployment: Deployment, name: RoleName, flag: str) -> str | None:
    """The key of a deployment that gives servers of role `name` a flag, however it is spelt; None if none can."""
    options = [spelling.removeprefix("--") for spelling in spellings(flag)]
    given = next((option for option in options if option in deployment.roles[name].options), None)
    decided = DECIDED.get(flag.removeprefix("--"))
    if given is not None or decided is None:
        return f"{name}.options.{given or flag.removeprefix('--')}"
    if decided in Role.__struct_fields__:
        return f"{name}.{decided}"
    return decided if decided in Deployment.__struct_fields__ else None


def _eager(role: Role) -> bool:
    """Whether the options of a role say that its decode steps run without graphs, for whatever reason."""
    return bool(role.options.get("disable-cuda-graph")) or role.options.get(_SCHEDULE) in ("prefill", "collective")


def written(flags: Mapping[str, bool | int | float | str]) -> list[str]:
    """Flags as words of a command line; false leaves a flag out."""
    words = []
    for name, value in flags.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not False:
            words += [f"--{name}", str(value)]
    return words


def _sizes(role: Role) -> dict[str, bool | int]:
    sizes: dict[str, bool | int] = {"tp-size": role.tp_size}
    if role.pp_size > 1:
        sizes["pp-size"] = role.pp_size
    if role.dp_size > 1:
        sizes |= {"dp-size": role.dp_size, "enable-dp-attention": True}
    return sizes | {"max-running-requests": role.max_running_requests}


def _role_flags(name: RoleName, role: Role, target: Target, place: NodePlace) -> dict[str, bool | int]:
    if name == "prefill":
        return {
            "disaggregation-bootstrap-port": place.bootstrap_port,
            "chunked-prefill-size": role.chunked_prefill_size,
        }
    if target == "ascend":
        return {"cuda-graph-max-bs-decode": -(-role.max_running_requests // role.dp_size)}
    return {}


_REQUIRE_GRAPHS = FLAGS["require_graphs"].flag.removeprefix("--")
_SCHEDULE = FLAGS["schedule"].flag.removeprefix("--")
_HOST: dict[str, bool | str] = {
    "device": "cpu",
    # The transfer engine of the PyPI package without CUDA; over TCP, for want of RDMA.
    "disaggregation-transfer-backend": "mooncake_tcp",
}
_HOST_ROLES: dict[RoleName, dict[str, bool | str]] = {
    # With overlap a hit of the prefix cache is sent after a CUDA event.
    "prefill": {"disable-overlap-schedule": True},
    # The other kind keeps retracted keys and values in pinned memory, which needs an accelerator.
    "decode": {"disaggregation-decode-retraction-backup": "cpu_tensor"},
}
_ASCEND: dict[str, bool | str] = {"device": "npu", "disaggregation-transfer-backend": "ascend"}
_ASCEND_ROLES: dict[RoleName, dict[str, bool | str]] = {
    "prefill": {"attention-backend": "ascend"},
    "decode": {"attention-backend": "ascend"},
}
