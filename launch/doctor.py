"""`ascend-moe doctor`: what is installed, whether the kernels work, and what became of every hook into SGLang."""

import argparse
import logging
import platform
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from sglang_ascend_moe import Exchange, hooks
from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.hooks import State
from sglang_ascend_moe.launch.exit_codes import CANNOT, CHECK_FAILED, OK
from sglang_ascend_moe.launch.post_mortem import account_of
from sglang_ascend_moe.platforms import ascend_device_nodes

DISTRIBUTIONS = ("sglang-ascend-moe", "sglang", "torch", "torch_npu", "msgspec")
ABSENT = "absent"


class HookReport(msgspec.Struct, frozen=True):
    """One hook: see `hooks.Hook`; `state` is applied, not applicable or failed; `detail` says why it is not applied."""

    target: str
    kind: str
    process: str
    where: str
    state: str
    detail: str
    reason: str


class Report(msgspec.Struct, frozen=True):
    """What the doctor found. `kernels` and `plugin` are `works`, or say what is wrong."""

    versions: dict[str, str]
    machine: str
    platform: str
    kernels: str
    plugin: str
    hooks: list[HookReport]

    def exit_code(self) -> int:
        """3 if the kernels or SGLang cannot be used, 1 if something in SGLang is not as needed, else 0."""
        if self.kernels != "works" or self.versions["sglang"] == ABSENT:
            return CANNOT
        if self.plugin != "works" or any(hook.state == State.FAILED.value for hook in self.hooks):
            return CHECK_FAILED
        return OK


def main(arguments: list[str]) -> int:
    """Print the report; see `Report.exit_code` for what is returned."""
    parser = argparse.ArgumentParser(prog="ascend-moe doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--post-mortem", type=Path, metavar="DIR", help="read the accounts of a failed exchange instead (text only)"
    )
    parsed = parser.parse_args(arguments)
    if parsed.post_mortem is not None:
        return _post_mortem(parsed.post_mortem)
    # SGLang logs what it does with plugins, and warns of devices that are not there; the report says it better.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    report = examine()
    if parsed.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print(text_of(report))
    return report.exit_code()


def _post_mortem(folder: Path) -> int:
    try:
        account = account_of(folder)
    except AscendMoeError as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return CHECK_FAILED
    if not account:
        print(f"{folder} holds no post-mortem files; ranks write them with --ascend-moe-post-mortem", file=sys.stderr)
        return CHECK_FAILED
    print(account)
    return OK


def examine() -> Report:
    """Load SGLang's plugins in this process and look at everything."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in DISTRIBUTIONS}}
    found: list[HookReport] = []
    plugin, selected = "SGLang is not installed", ABSENT
    if versions["sglang"] != ABSENT:
        from sglang.srt.plugins import load_plugins

        load_plugins()
        found = [
            HookReport(
                item.hook.target, item.hook.kind.value, item.hook.process.value, item.hook.where.value,
                item.state.value, item.detail, item.hook.reason,
            )
            for item in hooks.states()
        ]  # fmt: skip
        selected = "host, without accelerator" if hooks.on_host() else "SGLang's own"
        plugin = "works" if found else "SGLang did not load it; SGLANG_PLUGINS, if set, must contain ascend_moe"
    nodes = ascend_device_nodes()
    return Report(
        versions=versions,
        machine=f"{platform.machine()}, {len(nodes)} Ascend NPUs",
        platform=selected,
        kernels=_kernels(),
        plugin=plugin,
        hooks=found,
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ABSENT


def _kernels() -> str:
    """`works` if a token makes its way through an exchange of this process with itself, else why it does not."""
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
    return "works" if torch.equal(returned, 2 * token) else f"a row came back wrong: {returned.tolist()}"


def text_of(report: Report) -> str:
    """The report for people."""
    lines = [f"{name:<18}{value}" for name, value in report.versions.items()]
    lines += [
        f"{'machine':<18}{report.machine}",
        f"{'platform':<18}{report.platform}",
        f"{'host kernels':<18}{report.kernels}",
        f"{'plugin':<18}{report.plugin}",
        "",
        "hooks into SGLang:",
    ]
    for hook in report.hooks:
        detail = f" ({hook.detail})" if hook.detail else ""
        lines += [f"  {hook.state}{detail}: {hook.kind} {hook.target}", f"      {hook.reason}"]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
