"""`ascend-moe disagg render`: what to run where on Ascend A3, as text."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.disagg import compose, kubernetes, shell
from sglang_ascend_moe.launch.disagg.ascend import NOT_RUN, check_machines
from sglang_ascend_moe.launch.disagg.deployment import Deployment, read_deployment
from sglang_ascend_moe.launch.disagg.served import require_served
from sglang_ascend_moe.launch.plan.moe_config import MoeShape, read_moe_shape
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE

TARGETS: dict[str, Callable[[Deployment, MoeShape], dict[str, str]]] = {
    "shell": shell.render,
    "compose": compose.render,
    "k8s": kubernetes.render,
}
DESCRIPTION = (
    "Print, or write, what has to run on each Ascend A3 machine of a deployment: commands, environment and manifests,"
    " with window sizes computed from the model's config. What a server would refuse is not rendered."
    f" {NOT_RUN}"
)


def add_parser(commands: Any) -> None:
    """Adds `render` to the subcommands of `ascend-moe disagg`."""
    parser = commands.add_parser("render", help="commands and manifests for Ascend A3", description=DESCRIPTION)
    parser.set_defaults(run=run)
    parser.add_argument("--target", choices=TARGETS, required=True)
    parser.add_argument("--file", type=Path, metavar="TOML", required=True, help="the deployment")
    parser.add_argument(
        "--model-config", type=Path, metavar="PATH", help="the model's folder or config.json (default: its model_path)"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write files there instead of printing them")


def run(parsed: argparse.Namespace) -> int:
    try:
        deployment = read_deployment(parsed.file)
        check_machines(deployment)
        shape = shape_of_model(deployment, parsed.model_config)
        require_served(deployment, shape, f"--file {parsed.file}")
        files = TARGETS[parsed.target](deployment, shape)
    except AscendMoeError as error:
        print(f"ascend-moe disagg render: {error}", file=sys.stderr)
        return WRONG_USAGE
    if parsed.output is None:
        print("\n".join(f"#### {name}\n{text}" for name, text in files.items()))
        return OK
    try:
        write(files, parsed.output)
    except OSError as error:
        print(f"ascend-moe disagg render: --output {parsed.output}: {error.strerror}; give a folder", file=sys.stderr)
        return WRONG_USAGE
    print(NOT_RUN)
    return OK


def write(files: dict[str, str], folder: Path) -> None:
    """Writes the files, and prints where they are. Raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o755 if name.endswith(".sh") else 0o644)
        print(path)


def shape_of_model(deployment: Deployment, given: Path | None) -> MoeShape:
    """Read from `given`, or else from the deployment's own path. Raises `InvalidInput` naming the flag or the key."""
    if given is not None:
        return read_moe_shape(given, "--model-config")
    return read_moe_shape(Path(deployment.model_path), "--model-config is not given, and model_path")
