"""`ascend-moe disagg up`: a whole deployment on this machine, until Ctrl-C or until one of its servers ends."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, Unsupported
from sglang_ascend_moe.launch.disagg.deployment import Deployment, deployment_of, read_deployment
from sglang_ascend_moe.launch.disagg.deployment_events import Teller
from sglang_ascend_moe.launch.disagg.running import MemberFailed, RunningDeployment, import_told
from sglang_ascend_moe.launch.disagg.served import require_served_here
from sglang_ascend_moe.launch.disagg.server_flags import Target
from sglang_ascend_moe.launch.servers.forked_server import prepare_to_fork
from sglang_ascend_moe.launch.servers.memory_check import check_memory
from sglang_ascend_moe.launch.servers.preflight import Address, check_address
from sglang_ascend_moe.launch.servers.serve_request import ServeRequest
from sglang_ascend_moe.launch.servers.server_process import ServerFailed
from sglang_ascend_moe.serving.host_platform import obstacle
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, WRONG_USAGE
from sglang_ascend_moe.serving.options import Options

# Libraries of the system that mooncake loads, also where it transfers over TCP: file and Debian package.
MOONCAKE_LIBRARIES = {"libibverbs.so.1": "libibverbs1", "libnuma.so.1": "libnuma1", "libcurl.so.4": "libcurl4"}

_TARGETS: dict[str, Target] = {"cpu": "host", "npu": "ascend"}

DESCRIPTION = (
    "Start prefill servers, decode servers and a router on this machine. Everything ends with Ctrl-C and when any of"
    " them ends. Exit codes: 0 stopped by Ctrl-C or SIGTERM while it served, 130 before it did,"
    " 1 a server ended or did not come up, 2 wrong usage, 3 this machine cannot do it."
)


def add_parser(commands: Any) -> None:
    """Adds `up` to the subcommands of `ascend-moe disagg`."""
    parser = commands.add_parser("up", help="serve on this machine", description=DESCRIPTION)
    parser.set_defaults(run=run)
    parser.add_argument("--file", type=Path, metavar="TOML", help="the deployment; the flags below go before it")
    parser.add_argument("--model-path", metavar="MODEL")
    parser.add_argument("--prefill", type=int, metavar="P", help="prefill servers (default 1)")
    parser.add_argument("--decode", type=int, metavar="D", help="decode servers (default 1)")
    parser.add_argument("--tp-size", type=int, metavar="N", help="ranks of each server (default 1)")
    parser.add_argument("--device", choices=_TARGETS, default="cpu", help="that all servers run on (default cpu)")
    parser.add_argument("--mini-lb", action="store_true", help="SGLang's router in Python in place of the one in Rust")
    parser.add_argument("--host", help="that the router listens on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="of the router; 0: a free one (default 8000)")
    parser.add_argument("--secret-file", metavar="FILE", help="under which instances seal what they say of themselves")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="one log per server (default: a new folder)")
    parser.add_argument("--ready-timeout", type=float, default=900.0, metavar="SECONDS", help="(default 900)")
    parser.add_argument("--json", action="store_true", help="print events as JSON, one per line")


def run(parsed: argparse.Namespace) -> int:
    try:
        return _run(parsed)
    except AscendMoeError as error:
        print(f"ascend-moe disagg up: {' '.join(str(error).split())}", file=sys.stderr)
        return WRONG_USAGE


def _run(parsed: argparse.Namespace) -> int:
    deployment = deployment_asked(parsed)
    requests = check(deployment, parsed)
    logs = None if parsed.logs is None else folder_of_logs(parsed.logs)
    target = _TARGETS[parsed.device]
    if target == "host":
        prepare_to_fork()
    # What imports torch comes last.
    if problem := lack_of_memory(requests) or missing(target):
        print(f"ascend-moe disagg up: {problem}", file=sys.stderr)
        return CANNOT
    tell = Teller(as_json=parsed.json)
    try:
        if target == "host":
            import_told(tell)
    except ServerFailed as error:
        print(f"ascend-moe disagg up: {error}", file=sys.stderr)
        return CANNOT
    if logs is not None:
        return serve(deployment, logs, parsed.ready_timeout, tell, target)
    # Not before there can be a log: an interrupt until now leaves nothing behind.
    logs = Path(tempfile.mkdtemp(prefix="ascend-moe-disagg-"))
    try:
        return serve(deployment, logs, parsed.ready_timeout, tell, target)
    except KeyboardInterrupt:
        # Nothing went wrong that they could tell.
        shutil.rmtree(logs, ignore_errors=True)
        raise


def serve(deployment: Deployment, logs: Path, ready_timeout: float, tell: Teller, target: Target = "host") -> int:
    """Serve until a server fails, which returns 1. Raises KeyboardInterrupt when everything has ended after one."""
    with (
        contextlib.suppress(MemberFailed),
        interrupts.raised(),
        RunningDeployment(deployment, logs, tell, target) as running,
    ):
        try:
            running.start_instances(ready_timeout)
            running.start_router(ready_timeout)
            running.watch()
        except MemberFailed as failure:
            interrupts.ignore()
            tell(failure.event)
            raise
    return CHECK_FAILED


def check(deployment: Deployment, parsed: argparse.Namespace) -> list[ServeRequest]:
    """What every instance will be asked to serve.

    Raises `InvalidInput` or `Unsupported`, naming what to change, for what can be known before SGLang is imported.
    """
    source = f"--file {parsed.file}" if parsed.file else ""
    model_flag = "model_path" if source and parsed.model_path is None else "--model-path"
    requests = require_served_here(deployment, source, model_flag, _TARGETS[parsed.device])
    router = deployment.router
    host_flag, port_flag = (
        f"--{key}" if getattr(parsed, key) is not None or not source else f"{source}: router.{key}"
        for key in ("host", "port")
    )
    check_address(Address(host_flag, router.host, port_flag, router.port))
    return requests


def deployment_asked(parsed: argparse.Namespace) -> Deployment:
    """The deployment of `--file` with the other flags in place of its keys. Raises `InvalidInput`."""
    values: dict[str, Any] = msgspec.to_builtins(read_deployment(parsed.file)) if parsed.file else {}
    if parsed.model_path is not None:
        values["model_path"] = parsed.model_path
    if parsed.secret_file is not None:
        values["secret_file"] = parsed.secret_file
    for key, instances in (("prefill", parsed.prefill), ("decode", parsed.decode)):
        role = values.setdefault(key, {})
        if instances is not None:
            role["instances"] = instances
        if parsed.tp_size is not None:
            role["tp_size"] = parsed.tp_size
    router = values.setdefault("router", {})
    if parsed.mini_lb:
        router["kind"] = "mini-lb"
    for key in ("host", "port"):
        if getattr(parsed, key) is not None:
            router[key] = getattr(parsed, key)
    if "model_path" not in values:
        raise InvalidInput("--model-path is missing: give it, or --file")
    return deployment_of(values, "flags")


def folder_of_logs(asked: Path) -> Path:
    """The folder, made if it is not there. Raises `InvalidInput`."""
    try:
        asked.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(f"--logs {asked}: no folder can be made there: {error.strerror}") from error
    return asked


def missing(target: Target = "host") -> str:
    """Why this machine cannot serve a deployment; empty if it can."""
    if target == "ascend":
        return missing_npu() or _not_installed("sglang_router")
    if problem := obstacle():
        return f"needs a machine without accelerator, or --device npu: {problem}"
    return _not_installed("mooncake", "sglang_router") or missing_library()


def missing_npu() -> str:
    """Why this machine's NPUs cannot be used; empty if they can."""
    # torch comes with it.
    from sglang_ascend_moe.serving.npu.machine_checks import refuse_machine_without_npu

    try:
        refuse_machine_without_npu(Options())
    except AscendMoeError as refusal:
        return str(refusal)
    return ""


def _not_installed(*names: str) -> str:
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if not absent:
        return ""
    return f"{' and '.join(absent)} is not installed: pip install 'sglang-ascend-moe[disagg]'"


def lack_of_memory(requests: list[ServeRequest]) -> str:
    """Why the instances do not fit into the memory of this machine; empty if they do."""
    try:
        check_memory(requests)
    except Unsupported as refusal:
        return str(refusal)
    return ""


def missing_library() -> str:
    """A library of the system that mooncake, which moves keys and values, lacks; empty if it has all."""
    for name, package in MOONCAKE_LIBRARIES.items():
        try:
            ctypes.CDLL(name)
        except OSError:
            return f"mooncake needs {name}, which is not installed (Debian: apt-get install {package})"
    return ""
