"""The model of a deployment, read strictly from TOML: every error names the key that is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.exchange.control.network import PORTS_AFTER
from sglang_ascend_moe.serving.launcher.refusals import nodes_divide

Positive = Annotated[int, Meta(ge=1)]
Port = Annotated[int, Meta(ge=1, le=65535)]
FirstPort = Annotated[int, Meta(ge=1, le=65535 - PORTS_AFTER)]
Name = Annotated[str, Meta(pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$")]
OptionName = Annotated[str, Meta(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
OptionValue = bool | int | float | str
RoleName = Literal["prefill", "decode"]

# Set by the deployment, each for a reason; the key that decides instead.
DECIDED = {
    "model-path": "model_path", "model": "model_path", "host": "role", "port": "role", "nnodes": "nodes",
    "node-rank": "nodes", "dist-init-addr": "nodes", "tp-size": "tp_size", "tensor-parallel-size": "tp_size",
    "tp": "tp_size", "dp-size": "dp_size", "data-parallel-size": "dp_size", "dp": "dp_size", "attn-dp-size": "dp_size",
    "attention-data-parallel-size": "dp_size", "enable-dp-attention": "dp_size", "disaggregation-mode": "role",
    "disaggregation-bootstrap-port": "role", "pp-size": "pp_size", "pipeline-parallel-size": "pp_size",
    "disaggregation-transfer-backend": "transfer", "max-running-requests": "max_running_requests",
    "chunked-prefill-size": "chunked_prefill_size", "ascend-moe": "role", "device": "target",
    "ascend-moe-window-bytes": "window_bytes", "ascend-moe-secret-file": "secret_file",
}  # fmt: skip


class Role(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All instances of one role.

    instances: servers. nodes: machines that one server spans, or launchers where all are on one. tp_size: ranks of one
    stage of a server, which are also those of the exchange. pp_size: stages of one server. dp_size: attention groups of
    one server; above 1 attention is data-parallel. max_running_requests, chunked_prefill_size: of one server, as
    SGLang's flags. window_bytes: of each rank's window. options: further flags of SGLang without their dashes; true for
    a flag without value.
    """

    instances: Positive = 1
    nodes: Positive = 1
    tp_size: Positive = 1
    pp_size: Positive = 1
    dp_size: Positive = 1
    max_running_requests: Positive = 32
    chunked_prefill_size: Positive = 8192
    window_bytes: Positive | None = None
    options: dict[OptionName, OptionValue] = {}

    @property
    def ranks(self) -> int:
        """Of one server."""
        return self.tp_size * self.pp_size

    @property
    def ranks_per_node(self) -> int:
        return self.ranks // self.nodes

    def member_name(self, name: RoleName, instance: int, node: int) -> str:
        """What one node of an instance of this role, which is called `name`, is called."""
        return f"{name}-{instance}" + (f"-node-{node}" if self.nodes > 1 else "")


class Router(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The one address that clients use. port 0, on this machine only: a free one."""

    kind: Literal["rust", "mini-lb"] = "rust"
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8000


class Ascend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `render` has to know of the machines.

    image: container image. npus_per_node: devices of one machine. interface: network interface of HCCL and gloo.
    prefill_addresses, decode_addresses: machines for shell and compose, in the order of instances, then nodes.
    port, bootstrap_port: of every instance. dist_port: of every node 0, which takes ports up to 14 after it, too.
    kv_store_port: of the store through which memfabric's transfer engines meet. On Kubernetes, model_volume: claim that
    holds the model, secret_name: Secret that holds the content of secret_file under its name.
    """

    image: str = "sglang-ascend-moe:a3"
    npus_per_node: Positive = 16
    interface: str = "eth0"
    prefill_addresses: list[str] = []
    decode_addresses: list[str] = []
    port: Port = 30000
    bootstrap_port: Port = 8998
    dist_port: FirstPort = 5000
    kv_store_port: Port = 24669
    model_volume: str = "model"
    secret_name: str = "ascend-moe"


_CONTEXT = ("attn-cp-size", "attention-context-parallel-size")
"""Names of the flag by which ranks of an instance divide texts among them."""


class Deployment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Prefill instances, decode instances and a router. name: of containers and manifests.

    secret_file: where every instance finds the secret under which it seals what it says of itself.
    """

    name: Name = "moe"
    model_path: Annotated[str, Meta(min_length=1)]
    secret_file: Annotated[str, Meta(min_length=1)] | None = None
    prefill: Role = Role()
    decode: Role = Role()
    router: Router = Router()
    ascend: Ascend = Ascend()

    @property
    def roles(self) -> dict[RoleName, Role]:
        return {"prefill": self.prefill, "decode": self.decode}

    @property
    def ranks(self) -> int:
        """Of all instances together."""
        return sum(role.instances * role.ranks for role in self.roles.values())

    @property
    def mixed_sizes(self) -> bool:
        """Whether prefill and decode instances have different numbers of ranks or attention groups, or divide texts
        among ranks, which have more heads of keys and values then."""
        sizes = (self.prefill.tp_size, self.prefill.dp_size) != (self.decode.tp_size, self.decode.dp_size)
        return sizes or any(name in role.options for role in self.roles.values() for name in _CONTEXT)


def _check_role(source: str, key: str, role: Role) -> None:
    if role.tp_size % role.dp_size:
        raise InvalidInput(
            f"{source}: {key}.tp_size {role.tp_size}: must be a multiple of {key}.dp_size, which is {role.dp_size}"
        )
    if not nodes_divide(role.nodes, role.tp_size, role.pp_size):
        where = f"{key}.tp_size {role.tp_size}" if role.pp_size == 1 else f"{key}.pp_size {role.pp_size}"
        raise InvalidInput(f"{source}: {where}: must be a multiple of {key}.nodes, which is {role.nodes}")
    for name, value in (
        ("max_running_requests", role.max_running_requests),
        ("chunked_prefill_size", role.chunked_prefill_size),
    ):
        if value < role.dp_size:
            raise InvalidInput(
                f"{source}: {key}.{name} {value}: at least one for each of {role.dp_size} attention groups"
            )
    for name in role.options:
        if name in DECIDED:
            raise InvalidInput(
                f"{source}: {key}.options.{name}: set by the deployment itself ({DECIDED[name]}); leave it out"
            )


def read_deployment(path: Path) -> Deployment:
    """Raises `InvalidInput`, naming the file and the key, for a file that is not there, no TOML, or no deployment."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--file {path}: cannot be read: {error}") from error
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"--file {path}: not TOML: {error}") from error
    return deployment_of(values, f"--file {path}")


def deployment_of(values: dict[str, object], source: str) -> Deployment:
    """The deployment that `values` describe. Raises `InvalidInput`, naming `source` and the key."""
    try:
        deployment = msgspec.convert(values, Deployment, strict=True)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{source}: not a deployment: {_with_key(str(error))}") from error
    for key, role in deployment.roles.items():
        _check_role(source, key, role)
    if deployment.decode.pp_size not in (1, deployment.prefill.pp_size):
        raise InvalidInput(
            f"{source}: decode.pp_size {deployment.decode.pp_size}: must be 1, or prefill.pp_size, which is"
            f" {deployment.prefill.pp_size}"
        )
    return deployment


def _with_key(message: str) -> str:
    """msgspec's message with its path `$.prefill.tp_size` in front, as a TOML key."""
    words, found, path = message.rpartition(" - at `")
    if not found:
        return message
    return f"{path.rstrip('`').removeprefix('$').removeprefix('.') or 'deployment'}: {words}"
