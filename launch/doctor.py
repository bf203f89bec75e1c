"""`ascend-moe doctor`: what is installed, what would be used, what became of every hook into SGLang, and what to do."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.exit_codes import CHECK_FAILED, OK
from sglang_ascend_moe.launch.post_mortem import account_of

if TYPE_CHECKING:
    from sglang_ascend_moe.launch.examination import Report
    from sglang_ascend_moe.machine import MachineLimits

COLUMN = 20


def main(arguments: list[str]) -> int:
    """Print a report and return its exit code: see `Report.exit_code`; 1 for a server or folder that says nothing."""
    parsed = _parser().parse_args(arguments)
    if parsed.post_mortem is not None:
        return _post_mortem(parsed.post_mortem)
    if parsed.url is not None:
        return _live(parsed)
    from sglang_ascend_moe.launch.examination import examine

    # SGLang logs what it does with plugins, and warns of devices that are not there; the report says it better.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    report = examine(parsed.ranks)
    print(_json(report) if parsed.json else text_of(report))
    return report.exit_code()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ascend-moe doctor",
        description=__doc__,
        epilog="Exit codes: 0 well, 1 --ascend-moe would be refused, or the server or folder has nothing to say, 3"
        " nothing can be served here.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; docs/operations.md explains its keys")
    parser.add_argument(
        "--ranks", type=_ranks, metavar="R", help="ranks wanted on this machine (default: its NPUs, or else its cores)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--url", metavar="URL", help="ask a running server for its state, http://localhost:30000")
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
    from sglang_ascend_moe.launch.live_server import ask, text_of_states

    try:
        states = ask(parsed.url, parsed.api_key)
    except AscendMoeError as error:
        print(f"ascend-moe doctor: {error}", file=sys.stderr)
        return CHECK_FAILED
    print(_json(states) if parsed.json else text_of_states(states))
    return OK


def _json(content: object) -> str:
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()


def text_of(report: Report) -> str:
    """The report for people."""
    machine, limits = report.machine, report.machine.limits
    lines = [_line(name, value) for name, value in report.versions.items()]
    lines += [
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
        "",
        "hooks into SGLang:",
    ]
    for hook in report.hooks:
        detail = f" ({hook.detail})" if hook.detail else ""
        lines += [f"  {hook.state}{detail}: {hook.kind} {hook.target}", f"      {hook.reason}"]
    lines += ["", "problems:" if report.problems else "no problems"]
    for problem in report.problems:
        lines += [f"  {problem.severity}: {problem.message}", f"      remedy: {problem.remedy}"]
    return "\n".join(lines)


def _line(name: str, value: str) -> str:
    return f"{name:<{COLUMN}}{value}"


def _bytes(count: int | None) -> str:
    return "no limit" if count is None else f"{count:,} bytes"


def _container(limits: MachineLimits) -> str:
    if limits.container_limit is None:
        return "no limit"
    return f"{_bytes(limits.container_available)} left of {_bytes(limits.container_limit)}"


def _number(count: int | None) -> str:
    return "no limit" if count is None else f"{count:,}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
