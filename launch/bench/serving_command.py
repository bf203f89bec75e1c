"""`ascend-moe bench serving`: time to first token, time per token and throughput of servers, in turn in one run."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput, Unsupported
from sglang_ascend_moe.launch.bench.output_files import can_plot, plot_path, problem_with_file
from sglang_ascend_moe.launch.bench.serving_client import ClientFailed, Load, drive
from sglang_ascend_moe.launch.bench.serving_records import ServingRecord, text_table, write_serving_records
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.launch.servers.memory_check import check_memory
from sglang_ascend_moe.launch.servers.preflight import check_flags, check_model, may_be_on_hub
from sglang_ascend_moe.launch.servers.serve_request import ServeRequest, request_of
from sglang_ascend_moe.launch.servers.server_process import Progress, ServerFailed, ServerProcess
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, OK, WRONG_USAGE

PRESET = TinySizes(
    layers=6, hidden=1024, heads=8, kv_heads=2, head_dim=64, experts=64, topk=8, expert_hidden=32, vocab=768
)
"""A Qwen3-MoE of random weights with narrow experts: the exchange of its rows is a visible part of each step."""
VARIANTS = {
    "relay-free": ["--ascend-moe", "--tp-size", "2"],
    "drafts": [
        "--ascend-moe", "--tp-size", "2", "--speculative-algorithm", "EAGLE3", "--speculative-num-steps", "3",
        "--speculative-eagle-topk", "1", "--speculative-num-draft-tokens", "4",
    ],
    "collective": ["--ascend-moe", "--ascend-moe-schedule", "collective", "--tp-size", "2"],
    "stock": ["--tp-size", "1"],
}  # fmt: skip
"""The flags of each variant. Stock SGLang cannot spread experts over ranks on a host, so it is one rank."""
DRAFTS = "drafts"
"""The variant with a draft model, which only the preset has. Measured when it is asked for."""
DEFAULT_VARIANTS = [name for name in VARIANTS if name != DRAFTS]
LIVE = "live"
"""What the server that --url names is called in the records."""
READY_SECONDS = 600.0


class Served(NamedTuple):
    """The folders of a model that is served, and of its draft model, if it has one."""

    model: str
    draft: str | None


class ServingPlan(NamedTuple):
    """A checked command line. `model`: folder of the model to serve, None for the preset's."""

    variants: list[str]
    rounds: int
    load: Load
    model: str | None


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `bench serving` to the parser of `bench`."""
    sizes = f"{PRESET.layers} layers, hidden {PRESET.hidden}, {PRESET.experts} experts, top-{PRESET.topk}"
    parser = commands.add_parser(
        "serving",
        help=f"measure servers: {', '.join(VARIANTS)}",
        description="Starts a server for each variant in turn, in an order that is drawn anew in each round, and lets"
        f" SGLang's own serving benchmark ask it. The model is a random Qwen3-MoE ({sizes}, expert width"
        f" {PRESET.expert_hidden}) if none is given. Exit codes: 0 well, 1 a server failed or a request was not"
        " answered, 2 wrong usage.",
    )
    parser.set_defaults(run=run_serving)
    parser.add_argument(
        "--against", type=lambda text: text.split(","), metavar="V,...", default=DEFAULT_VARIANTS,
        help=f"variants to measure, of {', '.join(VARIANTS)} (default: all but {DRAFTS})",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3, help="servers of each variant, one after the other (3)")
    parser.add_argument("--requests", type=int, default=24, help="per round (24)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests under way at a time (4)")
    parser.add_argument("--input-tokens", type=int, default=256, help="of each request (256)")
    parser.add_argument("--output-tokens", type=int, default=48, help="of each request (48)")
    parser.add_argument("--model-path", metavar="FOLDER", help="serve this model, or the tokenizer of --url")
    parser.add_argument("--url", help="measure the server or router there, and start none")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the records there")
    parser.add_argument("--plot", type=plot_path, metavar="PATH", help="draw the records; .svg, .png or .pdf")


def run_serving(parsed: argparse.Namespace) -> int:
    """`bench serving`."""
    if problem := problem_with(parsed):
        print(f"ascend-moe bench serving: {problem}", file=sys.stderr)
        return WRONG_USAGE
    if parsed.plot is not None and not can_plot():
        return CANNOT
    load = Load(parsed.requests, parsed.concurrency, parsed.input_tokens, parsed.output_tokens)
    if parsed.model_path is not None:
        try:
            requests = check(parsed, load)
        except AscendMoeError as error:
            print(f"ascend-moe bench serving: {error}", file=sys.stderr)
            return WRONG_USAGE
        try:
            # One after the other.
            for request in requests:
                check_memory([request])
        except Unsupported as error:
            print(f"ascend-moe bench serving: {error}", file=sys.stderr)
            return CANNOT
    try:
        if parsed.url is None:
            records = measure(ServingPlan(parsed.against, parsed.rounds, load, parsed.model_path))
        else:
            records = [
                drive(parsed.url, parsed.model_path, load, variant=LIVE, round_number=number)
                for number in range(1, parsed.rounds + 1)
            ]
    except (ServerFailed, ClientFailed) as error:
        print(f"ascend-moe bench serving: {error}", file=sys.stderr)
        return CHECK_FAILED
    print(text_table(records))
    if parsed.json is not None:
        write_serving_records(parsed.json, records)
    if parsed.plot is not None:
        from sglang_ascend_moe.launch.bench.serving_plot import draw_serving

        draw_serving(records, parsed.plot)
    return OK


def problem_with(parsed: argparse.Namespace) -> str:
    """What is wrong with the flags; empty if nothing is."""
    for flag in ("rounds", "requests", "concurrency", "input_tokens", "output_tokens"):
        if getattr(parsed, flag) < 1:
            return f"--{flag.replace('_', '-')} {getattr(parsed, flag)}: has to be at least 1"
    for name in parsed.against:
        if name not in VARIANTS:
            return f"--against {name}: is none of {', '.join(VARIANTS)}"
        if name == DRAFTS and parsed.model_path is not None:
            return f"--against {DRAFTS} with --model-path: only the random model has a draft; leave one of them out"
    if parsed.url is not None and parsed.model_path is None:
        return "--url: name the folder of the model's tokenizer with --model-path"
    for flag, path in (("--json", parsed.json), ("--plot", parsed.plot)):
        if path is not None and (problem := problem_with_file(path)):
            return f"{flag} {path}: {problem}"
    return ""


def check(parsed: argparse.Namespace, load: Load) -> list[ServeRequest]:
    """What each variant will be asked to serve, none with `--url`.

    Raises `InvalidInput` or `Unsupported` for a model that is not there, or that a variant cannot serve.
    """
    if parsed.url is not None:
        if not Path(parsed.model_path).exists() and not may_be_on_hub(parsed.model_path):
            raise InvalidInput(f"--model-path {parsed.model_path}: there is no such folder; give that of a model")
        return []
    requests = []
    for variant in parsed.against:
        request = request_of(check_flags(_flags(Served(parsed.model_path, None), variant, load)))
        check_model(request, "--model-path", offline="the servers of a benchmark download nothing")
        requests.append(request)
    return requests


def measure(plan: ServingPlan) -> list[ServingRecord]:
    """Serve and ask every variant once in each round. Raises `ServerFailed`, `ClientFailed`."""
    drawn = random.Random(0)
    records = []
    with interrupts.raised(), tempfile.TemporaryDirectory(prefix="ascend-moe-bench-") as name:
        folder = Path(name)
        served = _write_preset(folder) if plan.model is None else Served(plan.model, None)
        for number in range(1, plan.rounds + 1):
            for variant in drawn.sample(plan.variants, len(plan.variants)):
                print(f"round {number} of {plan.rounds}: {variant}", flush=True)
                with ServerProcess(_flags(served, variant, plan.load), folder / f"{variant}.log") as server:
                    server.wait_until_ready(READY_SECONDS, _show_nothing)
                    records.append(drive(server.url, served.model, plan.load, variant=variant, round_number=number))
    return sorted(records, key=lambda record: (list(VARIANTS).index(record.variant), record.round))


def _write_preset(folder: Path) -> Served:
    from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
    from sglang_ascend_moe.launch.tiny_model.eagle3_draft import DRAFTED_INIT, write_eagle3_draft

    model = write_checkpoint(folder / "model", sizes=PRESET, init=DRAFTED_INIT)
    return Served(str(model), str(write_eagle3_draft(folder / "draft", model, PRESET)))


def _flags(served: Served, variant: str, load: Load) -> list[str]:
    draft = ["--speculative-draft-model-path", served.draft] if variant == DRAFTS and served.draft else []
    return [
        "--model-path", served.model, "--device", "cpu", "--max-running-requests", str(load.concurrency),
        "--disable-radix-cache", *VARIANTS[variant], *draft,
    ]  # fmt: skip


def _show_nothing(_progress: Progress) -> None:
    """Servers start often; the line of their round is enough."""
