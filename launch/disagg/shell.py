"""Shell scripts: one per machine, and one for the router."""

import shlex

from sglang_ascend_moe.launch.disagg.ascend import NOT_RUN, listed_router_arguments, nodes, window_notes
from sglang_ascend_moe.launch.disagg.deployment import Deployment
from sglang_ascend_moe.launch.plan.moe_config import MoeShape


def render(deployment: Deployment, shape: MoeShape) -> dict[str, str]:
    """File name -> text."""
    files = {}
    for node in nodes(deployment, shape):
        notes = window_notes({node.role: node.plan})
        files[f"{node.name}.sh"] = script(node.name, notes, node.environment, node.arguments)
    files["router.sh"] = script(
        "router", ["Start it when every server answers."], {}, listed_router_arguments(deployment)
    )
    return files


def script(name: str, notes: list[str], environment: dict[str, str], arguments: list[str]) -> str:
    """A script that becomes the server."""
    lines = ["#!/usr/bin/env bash", *(f"# {note}" for note in (name, NOT_RUN, *notes)), "set -euo pipefail"]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
    return "\n".join([*lines, f"exec {' '.join(_lines(arguments))}", ""])


def _lines(arguments: list[str]) -> list[str]:
    """A flag and its values on a line of their own."""
    return [(f"\\\n    {shlex.quote(word)}" if word.startswith("--") else shlex.quote(word)) for word in arguments]
