"""`ascend-moe bench`: measures an exchange, and shows again what was measured before."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.bench import graphs, products_command, serving_command
from sglang_ascend_moe.launch.bench.cases import (
    DEFAULT_VARIANTS,
    DTYPES,
    PHASES,
    PRESETS,
    ROUTINGS,
    VARIANTS,
    Case,
    Preset,
    problem_with,
)
from sglang_ascend_moe.launch.bench.output_files import can_plot, plot_path, problem_with_file
from sglang_ascend_moe.launch.bench.rank_processes import WRONG_RESULT, Outcome, run_ranks
from sglang_ascend_moe.launch.bench.records import Record, read_records
from sglang_ascend_moe.launch.bench.rounds import RoundsOutcome, measure_rounds, rounds_report
from sglang_ascend_moe.launch.bench.tables import markdown_ratios, markdown_times, text_report
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, INTERRUPTED, OK, WRONG_USAGE

UNNAMED = Preset("", "decode", (4096,), (64,), ("bf16",), "uniform", 100, 60, 540)
"""What is measured when neither a preset nor flags say otherwise."""


class Settings(NamedTuple):
    """A checked command line."""

    cases: list[Case]
    variants: list[str]
    iterations: int
    case_seconds: float
    total_seconds: float
    json: Path | None
    plot: Path | None
    rounds: list[int]


def main(arguments: list[str]) -> int:
    """Returns 1 if a variant delivered something wrong, 3 if a plot is wanted and cannot be made."""
    parsed = _parser().parse_args(arguments)
    return int(parsed.run(parsed))


def run_exchange(parsed: argparse.Namespace) -> int:
    """`bench exchange`."""
    settings = settings_of(parsed)
    if isinstance(settings, str):
        print(f"ascend-moe bench exchange: {settings}", file=sys.stderr)
        return WRONG_USAGE
    if settings.plot is not None and not can_plot():
        return CANNOT
    with interrupts.raised():
        outcome = _measured(settings)
    if outcome.exit_code == OK:
        return OK
    finished = len({record.case for record in outcome.records})
    print(f"ascend-moe bench exchange: {cause_of(outcome.exit_code)} {loss_of(finished, settings)}", file=sys.stderr)
    return {None: INTERRUPTED, WRONG_RESULT: CHECK_FAILED}.get(outcome.exit_code, CANNOT)


def _measured(settings: Settings) -> Outcome | RoundsOutcome:
    """Measures, and shows the cases that were finished."""
    if settings.rounds:
        in_rounds = measure_rounds(
            settings.cases, settings.rounds, settings.iterations, settings.case_seconds, settings.json
        )
        if in_rounds.records:
            print(rounds_report(in_rounds.records), flush=True)
        return in_rounds
    outcome = run_ranks(
        settings.cases, settings.variants, settings.iterations, settings.case_seconds, settings.total_seconds,
        settings.json,
    )  # fmt: skip
    if outcome.records:
        print(text_report(outcome.records), flush=True)
        if settings.plot is not None and any(record.absent is None for record in outcome.records):
            _plot(outcome.records, settings.plot)
    return outcome


def cause_of(exit_code: int | None) -> str:
    """Why a run ended early."""
    if exit_code is None:
        return "interrupted"
    if exit_code == WRONG_RESULT:
        return "a variant delivered something wrong"
    # mpirun says it as shells do.
    number = -exit_code if exit_code < 0 else exit_code - 128
    if number not in set(signal.Signals):
        return f"a rank ended with exit code {exit_code}"
    memory = " (by the kernel, if memory ran out: choose fewer with --against)" if number == signal.SIGKILL else ""
    return f"a rank was ended by {signal.Signals(number).name}{memory}"


def loss_of(finished: int, settings: Settings) -> str:
    """Which case was lost, and where the `finished` ones before it are."""
    if finished == len(settings.cases):
        return "after the last case"
    place = f"in case {finished + 1} of {len(settings.cases)} ({settings.cases[finished].text()})"
    kept = f"; {settings.json} holds the {finished} case{'s' if finished > 1 else ''} before it"
    return f"{place}, which is lost{kept if settings.json is not None and finished else ''}"


def run_report(parsed: argparse.Namespace) -> int:
    """`bench report`."""
    if parsed.plot is not None and not can_plot():
        return CANNOT
    try:
        records = read_records(parsed.records)
    except AscendMoeError as error:
        print(f"ascend-moe bench report: {error}; give a file that --json wrote", file=sys.stderr)
        return WRONG_USAGE
    except OSError as error:
        print(
            f"ascend-moe bench report: {parsed.records}: {error.strerror}; give a file that --json wrote",
            file=sys.stderr,
        )
        return WRONG_USAGE
    if parsed.markdown:
        print(f"{markdown_ratios(records)}\n\n{markdown_times(records)}")
    else:
        print(text_report(records))
    if parsed.plot is not None:
        _plot(records, parsed.plot)
    return OK


def run_page(parsed: argparse.Namespace) -> int:
    """`bench page`."""
    if not can_plot():
        return CANNOT
    from sglang_ascend_moe.launch.bench.pages import fill_page

    try:
        written = fill_page(parsed.page)
    except (AscendMoeError, OSError) as error:
        print(f"ascend-moe bench page: {error}", file=sys.stderr)
        return WRONG_USAGE
    print("\n".join(map(str, written)))
    return OK


def settings_of(parsed: argparse.Namespace) -> Settings | str:
    """The settings, or what is wrong with the flags."""
    preset = PRESETS[parsed.preset] if parsed.preset else UNNAMED
    if parsed.rounds:
        for flag, value in (("--against", parsed.against), ("--plot", parsed.plot), ("--phase decode", parsed.phase)):
            if value not in (None, "prefill"):
                return f"{flag} with --rounds: it measures relay-free alone, in prefill; leave one of them out"
    cases = [
        Case(
            phase="prefill" if parsed.rounds else parsed.phase or preset.phase,
            ranks=parsed.ranks, hidden=hidden, tokens=tokens, topk=parsed.topk, experts=parsed.experts, dtype=dtype,
            routing=parsed.routing or preset.routing, seed=parsed.seed,
        )
        for hidden, dtype, tokens in product(
            parsed.hidden or preset.hidden, parsed.dtype or preset.dtype, parsed.tokens or preset.tokens
        )
    ]  # fmt: skip
    for case in cases:
        if problem := problem_with(case):
            return problem
    for flag, path in (("--json", parsed.json), ("--plot", parsed.plot)):
        if path is not None and (problem := problem_with_file(path)):
            return f"{flag} {path}: {problem}"
    return Settings(
        cases=list(dict.fromkeys(cases)),
        variants=[name for name in VARIANTS if name in (parsed.against or _default_variants(cases))],
        iterations=parsed.iters or preset.iterations,
        case_seconds=preset.case_seconds,
        total_seconds=preset.total_seconds,
        json=parsed.json,
        plot=parsed.plot,
        rounds=parsed.rounds or [],
    )


def _default_variants(cases: list[Case]) -> list[str]:
    quantised = any(case.dtype == "int8" for case in cases)
    return [name for name in DEFAULT_VARIANTS if quantised or name != "quantise-memcpy"]


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ascend-moe bench", description="Measures exchange, graphs, servers and products.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    exchange = commands.add_parser(
        "exchange",
        help="measure dispatch and combine",
        description="Measures dispatch and combine, all variants in one run. Exit codes: 0 well, 1 a variant delivered"
        " something wrong, 2 wrong usage, 3 a rank was lost or no plot can be made here, 130 interrupted. Cases that"
        " were finished are shown and recorded in any case.",
    )  # fmt: skip
    exchange.set_defaults(run=run_exchange)
    presets = "; ".join(f"{name}: {preset.help}" for name, preset in PRESETS.items())
    exchange.add_argument("--preset", choices=PRESETS, help=f"values for flags that are not given. {presets}")
    exchange.add_argument("--ranks", type=_positive, default=2, help="processes (default 2)")
    exchange.add_argument("--hidden", type=_list(_positive), metavar="H,...", help="elements per row (4096)")
    exchange.add_argument("--tokens", type=_list(_positive), metavar="T,...", help="tokens that each rank brings (64)")
    exchange.add_argument("--topk", type=_positive, default=8, help="experts per token (default 8)")
    exchange.add_argument("--experts", type=_positive, default=64, help="experts of all ranks together (default 64)")
    exchange.add_argument(
        "--dtype", type=_list(_choice(DTYPES)), metavar="{bf16,int8},...", help="how rows travel to experts (bf16)"
    )
    exchange.add_argument("--routing", choices=ROUTINGS, help="which experts tokens choose (uniform)")
    exchange.add_argument("--phase", choices=PHASES, help="schedule of relay-free and collective (decode)")
    exchange.add_argument(
        "--against", type=_list(_choice(VARIANTS)), metavar="V,...",
        help=f"variants to measure, of {', '.join(VARIANTS)} (default: all, quantise-memcpy only with int8)",
    )  # fmt: skip
    exchange.add_argument(
        "--rounds", type=_list(_positive), metavar="N,...",
        help="instead: the whole layer in so many rounds, in windows as small as they allow, against one round",
    )  # fmt: skip
    exchange.add_argument("--iters", type=_positive, help="iterations per case at most (100)")
    exchange.add_argument("--seed", type=_natural, default=1, help="of tokens and routing (default 1)")
    exchange.add_argument("--json", type=Path, metavar="PATH", help="write the records there")
    exchange.add_argument("--plot", type=plot_path, metavar="PATH", help="draw the records; .svg, .png or .pdf")

    graphs.add_command(commands)
    serving_command.add_command(commands)
    products_command.add_command(commands)
    report = commands.add_parser("report", help="show the records of an earlier run")
    report.set_defaults(run=run_report)
    report.add_argument("records", type=Path, help="what --json wrote")
    report.add_argument("--markdown", action="store_true", help="tables in Markdown")
    report.add_argument("--plot", type=plot_path, metavar="PATH", help="draw the records; .svg, .png or .pdf")

    page = commands.add_parser("page", help="fill the tables of a Markdown page, and draw its pictures")
    page.set_defaults(run=run_page)
    page.add_argument("page", type=Path, help="with blocks <!-- KIND RECORDS.json --> ... <!-- end -->")
    return parser


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _natural(text: str) -> int:
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
    return int(text)


def _choice(names: Sequence[str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse


def _list(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    return lambda text: [parse(item) for item in text.split(",")]


def _plot(records: list[Record], path: Path) -> None:
    from sglang_ascend_moe.launch.bench.plot import draw

    draw(records, path)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
