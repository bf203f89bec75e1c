"""Whether the servers of a deployment would be served on Ascend: what `serve` refuses is not rendered.

The refusals are those of the launcher (`serving.launcher.refusals`) and of the workers (`sizing`), of the very flags
that are rendered; here they are said with the deployment's keys in place of flags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, Unsupported
from sglang_ascend_moe.launch.disagg.ascend import window_plan
from sglang_ascend_moe.launch.disagg.deployment import Deployment, RoleName
from sglang_ascend_moe.launch.disagg.server_flags import NodePlace, Target, key_of, server_flags
from sglang_ascend_moe.launch.plan.moe_config import MoeShape
from sglang_ascend_moe.launch.servers.preflight import check_flags, check_model
from sglang_ascend_moe.launch.servers.serve_request import ServeRequest, request_of
from sglang_ascend_moe.serving.launcher import given_flags, refusals
from sglang_ascend_moe.serving.launcher.given_flags import known_flags
from sglang_ascend_moe.serving.launcher.suggestions import did_you_mean
from sglang_ascend_moe.serving.options import FLAGS, Options

NONE_KEPT: Mapping[str, str] = {}
FLAGS_OF_UP = {"--tp-size": "--tp-size", "--model-path": "--model-path", FLAGS["secret_file"].flag: "--secret-file"}
"""Flags of servers that `up` has itself, and what it calls them."""


def require_served(deployment: Deployment, shape: MoeShape, source: str) -> None:
    """Raise `Unsupported`, naming `source` and the key to change, if a server of the deployment would refuse to start.

    As far as flags and the model's config tell: neither the machines nor the weights are looked at.
    """
    for name, role in deployment.roles.items():
        for option in role.options:
            _require_option(f"{source}: {name}.options.{option}", f"--{option}")
        try:
            _require_role(deployment, name, shape)
        except AscendMoeError as refusal:
            raise Unsupported(f"{source} cannot be served: {_with_keys(deployment, name, str(refusal))}") from refusal


def require_served_here(
    deployment: Deployment, source: str, model_flag: str, target: Target = "host"
) -> list[ServeRequest]:
    """What every instance will be asked to serve on this machine.

    source: the file, with whose keys flags are named; empty if there is none. Nothing is downloaded. Raises
    `InvalidInput` or `Unsupported`, naming what to change, if one would refuse to start.
    """
    requests = []
    for name, role in deployment.roles.items():
        for option in role.options:
            _require_option(f"{source}: {name}.options.{option}", f"--{option}")
        try:
            request = request_of(check_flags(server_flags(deployment, name, target, NodePlace(0))))
            check_model(request, model_flag, offline="`up` downloads nothing")
        except AscendMoeError as refusal:
            said = _with_keys(deployment, name, str(refusal), kept=NONE_KEPT if source else FLAGS_OF_UP)
            said = f"{source}: {said}" if source else said
            raise type(refusal)(said) from refusal
        requests += [request] * role.instances
    return requests


def _require_option(key: str, flag: str) -> None:
    if flag == "--config":
        raise InvalidInput(f"{key}: what that file sets is not seen here; set it in options")
    if flag not in known_flags():
        raise InvalidInput(
            f"{key}: the SGLang that is installed here has no flag {flag}{did_you_mean(flag, known_flags())}"
        )


def _require_role(deployment: Deployment, name: RoleName, shape: MoeShape) -> None:
    words = server_flags(deployment, name, "ascend", NodePlace(deployment.ascend.bootstrap_port))
    settings, options = given_flags.read(words)
    # Of the variables that are refused none is rendered.
    refusals.refuse_flags(settings, options or Options(), environment={})
    model = shape.model(f"model_path {deployment.model_path}")
    if settings.quantization is not None:
        found = None if settings.quantization == "unquant" else settings.quantization
        model = model._replace(path=f"{model.path} with --quantization", quantisation=found)
    ranks = refusals.Division(settings.tp_size, settings.ep_num_redundant_experts, shown_as="--tp-size")
    refusals.refuse_model(model, ranks, on_npu=True)
    window_plan(deployment, name, shape)


def _with_keys(deployment: Deployment, name: RoleName, message: str, kept: Mapping[str, str] = NONE_KEPT) -> str:
    """A refusal with keys of the deployment in place of the flags that they give, or flags in place of some of them."""

    def key(flag: re.Match[str]) -> str:
        if flag[0] in kept:
            return kept[flag[0]]
        found = key_of(deployment, name, flag[0]) if flag[0] in known_flags() else None
        return found or flag[0]

    return re.sub(r"--[a-z][a-z0-9-]*", key, message)
