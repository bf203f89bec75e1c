"""`ascend-moe disagg check`: is what a deployment answers what one server answers?"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.bench.output_files import problem_with_file
from sglang_ascend_moe.launch.comparison import TOLERANCES, Answer, Tolerance
from sglang_ascend_moe.launch.disagg.deployment_examination import CheckFinding, Examination
from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient, RequestFailed
from sglang_ascend_moe.launch.disagg.questions import Recorded, prompts, read_recorded, write_recorded
from sglang_ascend_moe.launch.parser import address
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, OK, WRONG_USAGE

DESCRIPTION = (
    "Ask a running deployment a dozen questions, alone, repeated, streamed, together and after aborted ones, and"
    " compare every token and logprob with a reference: one server with the same weights, or its recorded answers."
    " Exit codes: 0 all is well, 1 something differs or fails, 2 wrong usage, 3 the reference does not answer."
)


def add_parser(commands: Any) -> None:
    """Adds `check` to the subcommands of `ascend-moe disagg`."""
    parser = commands.add_parser("check", help="compare a running deployment with a reference", description=DESCRIPTION)
    parser.set_defaults(run=run)
    parser.add_argument("--url", type=address, required=True, help="of the router")
    parser.add_argument("--reference", metavar="URL|PATH", help="a server to compare with, or a file of --record")
    parser.add_argument("--record", type=Path, metavar="PATH", help="write the answers of --url there, compare nothing")
    parser.add_argument("--new-tokens", type=int, default=16, help="of each answer (default 16)")
    parser.add_argument("--longest", type=int, default=3000, help="characters of the longest prompt (default 3000)")
    parser.add_argument("--concurrent", type=int, default=8, help="requests at the same time (default 8)")
    parser.add_argument(
        "--dtype", choices=sorted(TOLERANCES), default="bfloat16",
        help="of the model, for how far logprobs may move (default bfloat16)",
    )  # fmt: skip
    parser.add_argument("--logprob-tolerance", type=float, help="largest change of a logprob (default: by --dtype)")
    parser.add_argument(
        "--margin", type=float, help="how far behind the best another token may be (default: by --dtype)"
    )
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds without an answer (default 120)")
    parser.add_argument("--api-key", help="of the router and of the reference")


def run(parsed: argparse.Namespace) -> int:
    try:
        return _run(parsed)
    except InvalidInput as error:
        print(f"ascend-moe disagg check: {error}", file=sys.stderr)
        return WRONG_USAGE


def _run(parsed: argparse.Namespace) -> int:
    for name, least in (("new_tokens", 2), ("longest", 1), ("concurrent", 1)):
        if getattr(parsed, name) < least:
            raise InvalidInput(f"--{name.replace('_', '-')} {getattr(parsed, name)}: at least {least}")
    if (parsed.reference is None) == (parsed.record is None):
        raise InvalidInput("give --reference, or --record to make one")
    if parsed.record is not None and (problem := problem_with_file(parsed.record)):
        raise InvalidInput(f"--record {parsed.record}: {problem}")
    asked = prompts(parsed.longest)
    client = GenerateClient(parsed.url, timeout=parsed.timeout, api_key=parsed.api_key)
    if parsed.record is not None:
        return _record(client, asked, parsed)
    try:
        expected = _expected(asked, parsed)
    except RequestFailed as error:
        print(f"ascend-moe disagg check: the reference does not answer: {error}", file=sys.stderr)
        return CANNOT
    default = TOLERANCES[parsed.dtype]
    tolerance = Tolerance(
        logprob=default.logprob if parsed.logprob_tolerance is None else parsed.logprob_tolerance,
        margin=default.margin if parsed.margin is None else parsed.margin,
    )
    examination = Examination(client, asked, expected, tolerance, parsed.concurrent)
    return verdict(report(finding) for finding in examination.findings())


def report(finding: CheckFinding) -> CheckFinding:
    """Print one finding as soon as it is known."""
    print(f"{'ok  ' if not finding.faults else 'FAIL'}  {finding.name}: {finding.summary}", flush=True)
    for fault in finding.faults:
        print(f"        {fault}", flush=True)
    return finding


def verdict(findings: Any) -> int:
    """The exit code, with a last line that says it."""
    failed = [finding.name for finding in findings if finding.faults]
    print(f"\nDIFFERENT OR FAILING: {', '.join(failed)}" if failed else "\nEQUAL to the reference in every check")
    return CHECK_FAILED if failed else OK


def _record(client: GenerateClient, asked: list[str], parsed: argparse.Namespace) -> int:
    try:
        answers = _answers(client, asked, parsed.new_tokens)
    except RequestFailed as error:
        print(f"ascend-moe disagg check: {error}", file=sys.stderr)
        return CANNOT
    write_recorded(parsed.record, Recorded(prompts=asked, new_tokens=parsed.new_tokens, answers=answers))
    print(f"{len(answers)} answers of {client.url} are in {parsed.record}")
    return OK


def _expected(asked: list[str], parsed: argparse.Namespace) -> list[Answer]:
    if parsed.reference.startswith(("http://", "https://")):
        reference = GenerateClient(parsed.reference, timeout=parsed.timeout, api_key=parsed.api_key)
        return _answers(reference, asked, parsed.new_tokens)
    return read_recorded(Path(parsed.reference), asked, parsed.new_tokens)


def _answers(client: GenerateClient, asked: list[str], new_tokens: int) -> list[Answer]:
    return [client.ask(prompt, new_tokens).answer for prompt in asked]
