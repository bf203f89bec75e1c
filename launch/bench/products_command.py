"""`ascend-moe bench products`: what experts' products take here with weights of 16 bits and of 8."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sglang_ascend_moe.launch.bench.output_files import problem_with_file
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE

if TYPE_CHECKING:
    from sglang_ascend_moe.launch.bench.expert_products import ProductsRecord

SIZES = {"experts": 16, "hidden": 2048, "intermediate": 768, "threads": 1, "rounds": 15}
ROWS = (1, 2, 4, 8, 16, 32, 64)


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `bench products` to the parser of `bench`."""
    parser = commands.add_parser(
        "products",
        help="measure experts' products in bfloat16 and int8",
        description="Measures the products of one rank's experts on this host, dequantised to bfloat16 as they are"
        " served, and in int8 with rows quantised on the way. Exit codes: 0 well, 2 wrong usage.",
    )
    parser.set_defaults(run=run_products)
    for name, size in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"default {size}")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="rows of each expert")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the records there")


def run_products(parsed: argparse.Namespace) -> int:
    """`bench products`."""
    for name, value in (*((name, getattr(parsed, name)) for name in SIZES), *(("rows", rows) for rows in parsed.rows)):
        if value < 1:
            print(f"ascend-moe bench products: --{name} {value}: at least 1", file=sys.stderr)
            return WRONG_USAGE
    if parsed.json is not None and (problem := problem_with_file(parsed.json)):
        print(f"ascend-moe bench products: --json {parsed.json}: {problem}", file=sys.stderr)
        return WRONG_USAGE
    import torch

    from sglang_ascend_moe.launch.bench.expert_products import Experts, measure

    torch.set_num_threads(parsed.threads)
    with interrupts.raised():
        records = measure(Experts(parsed.experts, parsed.hidden, parsed.intermediate), parsed.rows, parsed.rounds)
    print(table(records))
    if parsed.json is not None:
        parsed.json.write_bytes(msgspec.json.format(msgspec.json.encode(records), indent=1))
    return OK


def table(records: list[ProductsRecord]) -> str:
    """The records for people."""
    lines = [f"{'rows':>5}{'bfloat16, ms':>14}{'int8, ms':>12}{'int8 / bfloat16':>17}"]
    lines += [
        f"{one.rows:>5}{one.bfloat16_ms:>14.2f}{one.int8_ms:>12.2f}{one.int8_ms / one.bfloat16_ms:>17.2f}"
        for one in records
    ]
    read = records[0]
    lines.append(
        f"read of weights: {read.bfloat16_bytes / 1e6:.1f} MB in bfloat16, {read.int8_bytes / 1e6:.1f} in int8"
    )
    return "\n".join(lines)
