"""`ascend-moe bench products`: what a layer's experts take here with weights of 16 bits and of 8."""

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

SIZES = {
    "experts": (64, "of this rank"),
    "ranks": (2, "with so many experts each"),
    "topk": (8, "experts of a token"),
    "hidden": (2048, "elements of a row"),
    "intermediate": (768, "elements between the two products of an expert"),
    "threads": (1, "of this process"),
    "rounds": (15, "that count"),
}
TOKENS = (1, 4, 16, 64, 256, 1024)


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `bench products` to the parser of `bench`."""
    parser = commands.add_parser(
        "products",
        help="measure a layer's experts in bfloat16 and int8",
        description="Measures one rank's experts as this host serves them, with weights in bfloat16 and in int8 with"
        " rows quantised on the way. Nothing is exchanged. Exit codes: 0 well, 2 wrong usage.",
    )
    parser.set_defaults(run=run_products)
    for name, (size, meaning) in SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"{meaning} (default: {size})")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="of all ranks together")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the records there")


def run_products(parsed: argparse.Namespace) -> int:
    """`bench products`."""
    sizes = [(name, getattr(parsed, name)) for name in SIZES]
    for name, value in (*sizes, *(("tokens", tokens) for tokens in parsed.tokens)):
        if value < 1:
            print(f"ascend-moe bench products: --{name} {value}: at least 1", file=sys.stderr)
            return WRONG_USAGE
    if parsed.topk > parsed.experts * parsed.ranks:
        print(
            f"ascend-moe bench products: --topk {parsed.topk}: at most --experts by --ranks,"
            f" {parsed.experts * parsed.ranks}",
            file=sys.stderr,
        )
        return WRONG_USAGE
    if parsed.json is not None and (problem := problem_with_file(parsed.json)):
        print(f"ascend-moe bench products: --json {parsed.json}: {problem}", file=sys.stderr)
        return WRONG_USAGE
    import torch

    from sglang_ascend_moe.launch.bench.expert_products import Experts, measure

    torch.set_num_threads(parsed.threads)
    with interrupts.raised():
        experts = Experts(parsed.experts, parsed.hidden, parsed.intermediate, parsed.topk, parsed.ranks)
        records = measure(experts, parsed.tokens, parsed.rounds)
    print(table(records))
    if parsed.json is not None:
        parsed.json.write_bytes(msgspec.json.format(msgspec.json.encode(records), indent=1))
    return OK


def table(records: list[ProductsRecord]) -> str:
    """The records for people."""
    lines = [f"{'tokens':>6}{'rows':>7}{'experts':>9}{'bfloat16, ms':>14}{'int8, ms':>12}{'int8 / bfloat16':>17}"]
    lines += [
        f"{one.tokens:>6}{one.rows:>7}{one.used:>9}"
        f"{one.bfloat16_ms:>14.2f}{one.int8_ms:>12.2f}{one.int8_ms / one.bfloat16_ms:>17.2f}"
        for one in records
    ]
    read = records[0]
    lines.append(f"weights: {read.bfloat16_bytes / 1e6:.1f} MB in bfloat16, {read.int8_bytes / 1e6:.1f} in int8")
    return "\n".join(lines)
