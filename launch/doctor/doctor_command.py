"""`ascend-moe doctor`: whether `--ascend-moe` works here, what to do, and what is installed and would be used."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.doctor.post_mortem_accounts import account_of
from sglang_ascend_moe.launch.parser import Parser, address
from sglang_ascend_moe.launch.plan.sizes import exactly
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK

if TYPE_CHECKING:
    from sglang_ascend_moe.launch.doctor.examination import DoctorReport
    from sglang_ascend_moe.serving.machine_limits import MachineLimits

COLUMN = 20
HEADINGS = {
    "cannot": "nothing can be served until this is done:",
    "fails": "--ascend-moe is refused until this is done:",
    "slows": "this would make it faster:",
}
"""What stands above the problems of a severity."""


def main(arguments: list[str]) -> int:
    """Print a report and return its exit code: see `DoctorReport`; 1 for a server or folder that says nothing."""
    parsed = _parser().parse_args(arguments)
    if parsed.post_mortem is not None:
        return _post_mortem(parsed.post_mortem)
    if parsed.url is not None:
        return _live(parsed)
    from sglang_ascend_moe.launch.doctor.examination import examine

    # SGLang logs what it does with plugins, and warns of devices that are not there; the report says it better.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    if sys.stderr.isatty():
        print("SGLang is imported, which takes some seconds ...", file=sys.stderr, flush=True)
    report = examine(parsed.ranks)
    print(_json(report) if parsed.json else text_of(report, hooks=parsed.hooks))
    return report.exit_code()


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ascend-moe doctor",
        description=__doc__,
        epilog="Exit codes: 0 well, 1 --ascend-moe would be refused, or the server or folder has nothing to say, 3"
        " nothing can be served here.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; docs/operations.md explains its keys")
    parser.add_argument("--hooks", action="store_true", help="also list every hook into SGLang (JSON always does)")
    parser.add_argument(
        "--ranks", type=_ranks, metavar="R", help="ranks wanted on this machine (default: its NPUs, or else its cores)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--url", type=address, metavar="URL", help="ask a running server for its state, http://localhost:30000"
    )
    source.add_argument(
        "--post-mortem", type=Path, metavar="DIR", help="read the accounts of a failed exchange (text only)"
    )
    parser.add_argument("--api-key", metavar="KEY", help="of the server, with --url")
    return parser


def _ranks(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


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


def _live(parsed: argparse.Namespace) -> int:
    from sglang_ascend_moe.launch.doctor.live_server import ask, text_of_states

    try:
        states = ask(parsed.url, parsed.api_key)
    except AscendMoeError as error:
        print(f"ascend-moe doctor: {error}", file=sys.stderr)
        return CHECK_FAILED
    print(_json(states) if parsed.json else text_of_states(states))
    return OK


def _json(content: object) -> str:
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()


def text_of(report: DoctorReport, *, hooks: bool = False) -> str:
    """The report for people: the verdict, what to do, what was found, and with `hooks` every hook into SGLang."""
    lines = [verdict(report), ""]
    for severity, heading in HEADINGS.items():
        found = [problem for problem in report.problems if problem.severity == severity]
        for problem in found:
            lines += [] if problem is not found[0] else [heading]
            lines += [f"  - {problem.message}", f"    do: {problem.remedy}"]
        lines += [""] if found else []
    lines += _found(report)
    if not hooks:
        return "\n".join([*lines, _line("hooks", f"{_hook_counts(report)}; --hooks lists them")])
    lines += ["", f"hooks into SGLang: {_hook_counts(report)}"]
    for hook in report.hooks:
        detail = f" ({hook.detail})" if hook.detail else ""
        lines += [f"  {hook.state}{detail}: {hook.kind} {hook.target}", f"      {hook.reason}"]
        lines += [f"      mends a fault of SGLang, {hook.mends}"] if hook.mends else []
    return "\n".join(lines)


def verdict(report: DoctorReport) -> str:
    """One line: whether `--ascend-moe` works here, or what is worst."""
    severities = [problem.severity for problem in report.problems]
    if "cannot" not in severities and "fails" not in severities:
        slower = ", but slower than it could" if severities else ""
        return f"--ascend-moe works here{slower}: backend {report.backend}, SGLang {report.versions['sglang']}"
    worst = report.problems[0]
    others = len(severities) - severities.count("slows") - 1
    more = f" (and {others} more)" if others else ""
    return f"--ascend-moe does not work here: {worst.message}{more}"


def _found(report: DoctorReport) -> list[str]:
    machine, limits = report.machine, report.machine.limits
    return [
        *(_line(name, value) for name, value in report.versions.items()),
        _line("machine", f"{machine.architecture}, {machine.ascend_devices} Ascend NPUs"),
        _line("backend", f"{report.backend} ({report.backend_reason})"),
        _line("host kernels", report.kernels),
        _line("plugin", report.plugin),
        _line("cores", f"{machine.cores} for {machine.ranks} ranks"),
        _line("memory available", _bytes(limits.memory_available)),
        _line("memory, container", _container(limits)),
        _line("memory, locked", _bytes(limits.locked_memory)),
        _line("memfd", machine.memfd),
        _line("largest file", _bytes(limits.file_bytes)),
        _line("address space", _bytes(limits.address_space)),
        _line("descriptors", f"{limits.descriptors_open} open of {_number(limits.descriptors)}"),
    ]


def _hook_counts(report: DoctorReport) -> str:
    counts = Counter(hook.state for hook in report.hooks)
    return ", ".join(f"{count} {state}" for state, count in counts.items()) or "none"


def _line(name: str, value: str) -> str:
    return f"{name:<{COLUMN}}{value}"


def _bytes(count: int | None) -> str:
    return "no limit" if count is None else exactly(count)


def _container(limits: MachineLimits) -> str:
    if limits.container_limit is None:
        return "no limit"
    return f"{_bytes(limits.container_available)} left of {_bytes(limits.container_limit)}"


def _number(count: int | None) -> str:
    return "no limit" if count is None else f"{count:,}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
