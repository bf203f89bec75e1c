"""What `ascend-moe doctor` finds here: versions, backend, kernels, hooks, limits, and what to do about each."""

import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
import torch.distributed as dist

from sglang_ascend_moe import Exchange
from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.serving import hooks
from sglang_ascend_moe.serving.hooks import State
from sglang_ascend_moe.serving.host_platform import ascend_device_nodes, obstacle
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, OK
from sglang_ascend_moe.serving.machine_limits import (
    MachineLimits,
    cores,
    descriptors_needed,
    memfd_obstacle,
    read_limits,
)
from sglang_ascend_moe.serving.npu.machine_checks import device_name, refuse_machine_without_npu
from sglang_ascend_moe.serving.options import Options

DISTRIBUTIONS = ("sglang-ascend-moe", "sglang", "torch", "torch_npu", "msgspec")
ABSENT = "not installed"
WORKS = "works"

# Where Ascend machines keep the version of CANN and of the driver. Read from public sources; no such machine was tried.
_ASCEND = Path("usr/local/Ascend")
_CANN = ("cann", "ascend-toolkit/latest")
_CANN_FILE = "{machine}-linux/ascend_toolkit_install.info"
_DRIVER_FILE = _ASCEND / "driver/version.info"

# Descriptors that one of SGLang's schedulers has open besides: with two ranks 102 and 128 were counted in all.
SCHEDULER_DESCRIPTORS = 160


class HookReport(msgspec.Struct, frozen=True):
    """One hook: see `hooks.Hook`; `state` is applied, not applicable or failed; `detail` says why it is not applied.

    mends: for a hook that mends a fault of SGLang, until when it is needed; else empty.
    """

    target: str
    kind: str
    process: str
    where: str
    state: str
    detail: str
    reason: str
    mends: str


class Problem(msgspec.Struct, frozen=True):
    """Something to do. `severity`: cannot (nothing can be served), fails (`--ascend-moe` is refused), or slows."""

    severity: str
    subject: str
    message: str
    remedy: str


class MachineReport(msgspec.Struct, frozen=True):
    """`ranks` is what `cores` are compared with. `memfd` is `works`, or why no window can be made."""

    architecture: str
    ascend_devices: int
    cores: int
    ranks: int
    memfd: str
    limits: MachineLimits


class DoctorReport(msgspec.Struct, frozen=True):
    """What was found. `backend` is host, npu or none; `kernels` and `plugin` are `works`, or say what is wrong.

    problems: the worst first.
    """

    versions: dict[str, str]
    machine: MachineReport
    backend: str
    backend_reason: str
    kernels: str
    plugin: str
    hooks: list[HookReport]
    problems: list[Problem] = []

    def exit_code(self) -> int:
        """3 if nothing can be served here, 1 if `--ascend-moe` would be refused, else 0."""
        severities = {problem.severity for problem in self.problems}
        return CANNOT if "cannot" in severities else CHECK_FAILED if "fails" in severities else OK


def examine(ranks: int | None) -> DoctorReport:
    """Load SGLang's plugins in this process and look at everything.

    ranks: that are wanted on this machine; None: as many as it has NPUs, or else cores.
    """
    versions = read_versions()
    devices = len(ascend_device_nodes())
    found: list[HookReport] = []
    plugin, backend = "SGLang is not installed", ChosenBackend("none", "SGLang is not installed")
    if versions["sglang"] != ABSENT:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        found = [
            HookReport(
                item.hook.target, item.hook.kind.value, item.hook.process.value, item.hook.where.value,
                item.state.value, item.detail, item.hook.reason, item.hook.mends.until() if item.hook.mends else "",
            )
            for item in hooks.states()
        ]  # fmt: skip
        plugin = WORKS if found else "SGLang did not load it"
        backend = backend_of_process()
    report = DoctorReport(
        versions=versions,
        machine=MachineReport(
            architecture=platform.machine(),
            ascend_devices=devices,
            cores=len(cores()),
            ranks=ranks or devices or len(cores()),
            memfd=memfd_obstacle() or WORKS,
            limits=read_limits(),
        ),
        backend=backend.name,
        backend_reason=backend.reason,
        kernels=_kernels(),
        plugin=plugin,
        hooks=found,
    )
    return msgspec.structs.replace(report, problems=list(problems_of(report)))


class ChosenBackend(NamedTuple):
    """What would be served with: host, npu or none, and why."""

    name: str
    reason: str


def backend_of_process() -> ChosenBackend:
    """What SGLang would serve with from a process like this one, which has loaded its plugins."""
    if hooks.on_host():
        return ChosenBackend("host", "no accelerator")
    if not hooks.on_npu():
        return ChosenBackend("none", obstacle() or "the host platform was not loaded")
    try:
        refuse_machine_without_npu(Options())
    except AscendMoeError as missing:
        return ChosenBackend("none", str(missing))
    return ChosenBackend("npu", f"{device_name()}, with which nothing of this has run yet")


def read_versions(root: Path = Path("/")) -> dict[str, str]:
    """Versions by name; `root` holds `usr/local/Ascend`."""
    machine = platform.machine()
    cann = [root / _ASCEND / folder / _CANN_FILE.format(machine=machine) for folder in _CANN]
    return {
        "python": platform.python_version(),
        **{name: _distribution(name) for name in DISTRIBUTIONS},
        "cann": next((found for path in cann if (found := _version_in(path)) != ABSENT), ABSENT),
        "driver": _version_in(root / _DRIVER_FILE),
    }


def _distribution(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ABSENT


def _version_in(path: Path) -> str:
    """What the line `version=...` of a file says."""
    try:
        found = re.search(r"^version=(.+)$", path.read_text(), flags=re.MULTILINE | re.IGNORECASE)
    except OSError:
        return ABSENT
    return found[1].strip() if found else f"{path} does not say"


def _kernels() -> str:
    """`works` if a token makes its way through an exchange of this process with itself, else why it does not."""
    if problem := memfd_obstacle():
        return f"not tried: {problem}"
    token = torch.ones(1, 16)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with Exchange.create(
            None, num_experts=1, hidden=16, max_tokens=1, topk=1, dtype=torch.float32, timeout_s=5.0
        ) as exchange:
            returned = exchange.run(
                token,
                torch.zeros(1, 1, dtype=torch.int64),
                torch.full((1, 1), 2.0),
                lambda rows: rows.out.copy_(rows.rows),
                phase="decode",
            )
    except AscendMoeError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return WORKS if torch.equal(returned, 2 * token) else f"a row came back wrong: {returned.tolist()}"


def problems_of(report: DoctorReport) -> Iterator[Problem]:
    """Everything in the report that keeps a server from running or from running well, worst first."""
    yield from _what_cannot_be(report)
    yield from _what_fails(report)
    yield from _what_limits(report.machine)


def _what_cannot_be(report: DoctorReport) -> Iterator[Problem]:
    if report.versions["sglang"] == ABSENT:
        yield Problem("cannot", "sglang", "SGLang is not installed", "pip install -r requirements.lock")
    elif report.backend == "none":
        yield Problem(
            "cannot",
            "backend",
            f"no backend: {report.backend_reason}",
            "serve on a machine without accelerator, SGLANG_USE_CPU_ENGINE unset, and with ascend_moe_host in"
            " SGLANG_PLUGINS if that is set; or with Ascend NPUs and what docs/ascend.md lists",
        )
    if report.kernels != WORKS:
        yield Problem("cannot", "kernels", report.kernels, "build them again: pip install -e . (or make venv)")
    if report.machine.memfd != WORKS:
        yield Problem(
            "cannot",
            "memfd",
            f"no window can be made: {report.machine.memfd}",
            "allow memfd_create in the sandbox or seccomp profile of this container",
        )


def _what_fails(report: DoctorReport) -> Iterator[Problem]:
    if report.versions["sglang"] != ABSENT and report.plugin != WORKS:
        yield Problem(
            "fails",
            "plugin",
            report.plugin,
            "install this package; SGLANG_PLUGINS, if set, must contain ascend_moe",
        )
    for hook in report.hooks:
        if hook.state == State.FAILED.value:
            yield Problem(
                "fails",
                "hook",
                f"{hook.target}: {hook.detail}; needed because {hook.reason}",
                f"install the SGLang version of requirements.lock (now {report.versions['sglang']})",
            )


def _what_limits(machine: MachineReport) -> Iterator[Problem]:
    limits = machine.limits
    needed = SCHEDULER_DESCRIPTORS + descriptors_needed(machine.ranks)
    if limits.descriptors is not None and limits.descriptors < needed:
        yield Problem(
            "fails",
            "descriptors",
            f"RLIMIT_NOFILE is {limits.descriptors}; a worker of {machine.ranks} ranks has about {needed} open",
            f"ulimit -n {needed}"
            + ("" if limits.descriptors_most is None or limits.descriptors_most >= needed else ", as root"),
        )
    for subject, limit, command in (
        ("file_bytes", limits.file_bytes, "ulimit -f unlimited"),
        ("address_space", limits.address_space, "ulimit -v unlimited"),
    ):
        if limit is not None:
            yield Problem("slows", subject, f"windows are bounded by a limit of {limit} bytes", command)
    if machine.ranks > machine.cores:
        yield Problem(
            "slows",
            "cores",
            f"{machine.ranks} ranks share {machine.cores} cores, so that they wait for each other's turn",
            f"give the server more cores, or --tp-size {machine.cores}",
        )
