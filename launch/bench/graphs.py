"""`ascend-moe bench graphs`: decode in graphs against eager decode: steps on two ranks, tokens over HTTP."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Literal

import msgspec

from sglang_ascend_moe.launch.bench import graphs_serving
from sglang_ascend_moe.launch.bench.output_files import problem_with_file, write_json
from sglang_ascend_moe.launch.bench.rank_processes import run_processes
from sglang_ascend_moe.launch.bench.serving_client import ClientFailed
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.launch.servers.server_process import ServerFailed, free_port
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK, WRONG_USAGE

RANK_MODULE = "sglang_ascend_moe.launch.bench.graphs_rank"
RANKS = 2
BATCHES = (1, 2, 4, 8)
VERIFIED_BATCHES = (1, 4, 26)
TREE = 3
"""Tokens of each request that a step verifies."""
PRESET = TinySizes(
    layers=8, hidden=512, heads=8, kv_heads=2, head_dim=64, experts=32, topk=4, expert_hidden=32, vocab=768
)
"""A small Qwen3-MoE of random weights, its experts as narrow as those of `bench serving`: their products are the same
in both kinds of step, and of wide experts they would be most of what is measured."""
PROMPT_TOKENS = 64


class GraphsRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the ranks are told. `batches` in requests per rank; `results` is the file that rank 0 writes; `tree`: tokens
    of each request that a step verifies, or 1: it decodes."""

    checkpoint: str
    results: str
    port: int
    batches: tuple[int, ...]
    prompt_tokens: int
    steps: int
    tree: int


class GraphsRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One batch size, or one concurrency.

    measured `step`: batch is in requests per rank; eager_ms and replay_ms are CPU time of the main thread per decode
    step of the model, median over `count` steps, of the slowest rank; ratio is eager / replay of the rank where it is
    lowest; bit_identical: every logit of every step on every rank. capture_s: longest capture of one graph of this
    batch. operators: of one replay. exchange_ms: work in the exchanges of a replayed step, without waits.

    measured `verify`: the same of steps that verify a chain of each request. rows_ratio: work in the exchanges of an
    eager step over that of one that decodes as many rows, in turn, of all ranks together.

    measured `tpot`: batch is the number of requests under way; eager_ms and replay_ms are the time between two tokens
    of a request over HTTP, median over `count` requests, of a server without graphs and of one with them; ratio is
    eager / replay; bit_identical: tokens and logprobs of requests that were asked one after the other.
    """

    measured: Literal["step", "verify", "tpot"]
    batch: int
    eager_ms: float
    replay_ms: float
    ratio: float
    bit_identical: bool
    count: int
    capture_s: float | None = None
    operators: int | None = None
    exchange_ms: float | None = None
    rows_ratio: float | None = None


def add_command(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds `bench graphs` to the parser of `bench`."""
    sizes = f"{PRESET.layers} layers, hidden {PRESET.hidden}, {PRESET.experts} experts, top-{PRESET.topk}"
    parser = commands.add_parser(
        "graphs",
        help="measure decode steps in graphs against eager ones",
        description=f"Measures the decode steps of a random Qwen3-MoE ({sizes}, expert width {PRESET.expert_hidden},"
        f" vocabulary {PRESET.vocab}) on {RANKS} ranks with data-parallel attention: CPU time of the main thread per"
        " step, eager and replayed in turn, the part of exchanges, and whether all logits are equal bit for bit;"
        f" then those of steps that verify {TREE} tokens of each request, beside steps that decode as many. Then serves"
        " it without and with graphs, and measures the time between tokens over HTTP. Exit codes: 0 well, 1 a bit"
        " differs or a rank or server failed, 2 wrong usage.",
    )
    parser.set_defaults(run=run_graphs)
    parser.add_argument("--steps", type=int, default=60, help="steps of each kind per batch (default 60)")
    parser.add_argument(
        "--requests", type=int, default=12, help="requests to each server per concurrency (default 12); 0: no server"
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the records there")


def run_graphs(parsed: argparse.Namespace) -> int:
    """`bench graphs`."""
    for name, least in (("steps", 1), ("requests", 0)):
        if getattr(parsed, name) < least:
            print(f"ascend-moe bench graphs: --{name} {getattr(parsed, name)}: at least {least}", file=sys.stderr)
            return WRONG_USAGE
    if parsed.json is not None and (problem := problem_with_file(parsed.json)):
        print(f"ascend-moe bench graphs: --json {parsed.json}: {problem}", file=sys.stderr)
        return WRONG_USAGE
    decoded = measure(parsed.steps)
    verified = None if decoded is None else measure(parsed.steps, batches=VERIFIED_BATCHES, tree=TREE)
    if decoded is None or verified is None:
        print("ascend-moe bench graphs: a rank failed; what it printed stands above", file=sys.stderr)
        return CHECK_FAILED
    records = decoded + verified
    try:
        records += measure_servers(parsed.requests) if parsed.requests else []
    except (ServerFailed, ClientFailed, OSError) as error:
        print(f"ascend-moe bench graphs: {error}", file=sys.stderr)
        return CHECK_FAILED
    print(table(records))
    if parsed.json is not None:
        write_json(parsed.json, records)
    return OK if all(record.bit_identical for record in records) else CHECK_FAILED


def measure(
    steps: int, sizes: TinySizes = PRESET, batches: tuple[int, ...] = BATCHES, tree: int = 1
) -> list[GraphsRecord] | None:
    """Starts the ranks and returns their records; None if a rank failed. tree: tokens of a request in each step."""
    from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint

    with interrupts.raised(), tempfile.TemporaryDirectory(prefix="ascend-moe-bench-") as name:
        folder = Path(name)
        run = GraphsRun(
            checkpoint=str(write_checkpoint(folder / "checkpoint", sizes=sizes)),
            results=str(folder / "results"),
            port=free_port(),
            batches=batches,
            prompt_tokens=PROMPT_TOKENS,
            steps=steps,
            tree=tree,
        )
        (folder / "run").write_bytes(msgspec.json.encode(run))
        commands = [[sys.executable, "-m", RANK_MODULE, str(folder / "run"), str(rank)] for rank in range(RANKS)]
        if run_processes(commands) != OK:
            return None
        return msgspec.json.decode(Path(run.results).read_bytes(), type=list[GraphsRecord])


def measure_servers(requests: int, sizes: TinySizes = PRESET) -> list[GraphsRecord]:
    """Asks a server without graphs, then one with them. Raises `ServerFailed`, `ClientFailed`, `OSError`."""
    from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint

    with interrupts.raised(), tempfile.TemporaryDirectory(prefix="ascend-moe-bench-") as name:
        folder = Path(name)
        prompts = graphs_serving.random_prompts(requests, PROMPT_TOKENS, sizes.vocab)
        flags = server_flags(str(write_checkpoint(folder / "checkpoint", sizes=sizes)), max(BATCHES))
        eager, replayed = (
            graphs_serving.serve_and_ask([*flags, switch], folder / "log", prompts)
            for switch in ("--disable-cuda-graph", "--ascend-moe-require-graphs")
        )
    return [
        GraphsRecord(
            measured="tpot",
            batch=concurrency,
            eager_ms=eager.tpot_ms[concurrency],
            replay_ms=replayed.tpot_ms[concurrency],
            ratio=eager.tpot_ms[concurrency] / replayed.tpot_ms[concurrency],
            bit_identical=eager.answers == replayed.answers,
            count=requests,
        )
        for concurrency in graphs_serving.CONCURRENCIES
    ]


def server_flags(checkpoint: str, requests: int) -> list[str]:
    """Of the server that is measured, for at most `requests` per rank."""
    return [
        "--model-path", checkpoint, "--device", "cpu", "--dtype", "bfloat16", "--tp-size", str(RANKS),
        "--dp-size", str(RANKS), "--enable-dp-attention", "--context-length", "1024",
        "--max-running-requests", str(requests * RANKS), "--chunked-prefill-size", "1024",
        "--disable-overlap-schedule", "--log-level", "warning", "--ascend-moe",
    ]  # fmt: skip


def table(records: list[GraphsRecord]) -> str:
    """The records for a terminal."""
    lines = [
        "measured  batch  eager ms  replay ms  ratio  bit-identical  operators  capture s  exchange ms  rows ratio"
    ]
    lines += [
        f"{item.measured:8}  {item.batch:5d}  {item.eager_ms:8.2f}  {item.replay_ms:9.2f}  {item.ratio:5.2f}"
        f"  {'yes' if item.bit_identical else 'NO':>13}"
        + ("" if item.operators is None else f"  {item.operators:9d}  {item.capture_s:9.2f}  {item.exchange_ms:11.2f}")
        + ("" if item.rows_ratio is None else f"  {item.rows_ratio:10.2f}")
        for item in records
    ]
    return "\n".join(lines)
