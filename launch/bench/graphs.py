"""`ascend-moe bench graphs`: decode steps in graphs against the same steps run eagerly, in one run on two ranks."""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
from pathlib import Path

import msgspec

from sglang_ascend_moe.launch.bench.launcher import run_processes
from sglang_ascend_moe.launch.exit_codes import CHECK_FAILED, OK
from sglang_ascend_moe.launch.tiny_model import write_checkpoint
from sglang_ascend_moe.launch.tiny_weights import TinySizes

RANK_MODULE = "sglang_ascend_moe.launch.bench.graphs_rank"
RANKS = 2
BATCHES = (1, 2, 4, 8)
PRESET = TinySizes(
    layers=8, hidden=512, heads=8, kv_heads=2, head_dim=64, experts=32, topk=4, expert_hidden=192, vocab=768
)
"""A small Qwen3-MoE with many narrow experts, three eighths of the hidden size wide; random weights."""
PROMPT_TOKENS = 64


class GraphsRun(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the ranks are told. `batches` in requests per rank; `results` is the file that rank 0 writes."""

    checkpoint: str
    results: str
    port: int
    batches: tuple[int, ...]
    prompt_tokens: int
    steps: int


class GraphsRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One batch size.

    batch: requests per rank. eager_ms, replay_ms: CPU time of the main thread per decode step of the model, median
    over `steps`, of the slowest rank. ratio: eager / replay, of the rank where it is lowest. bit_identical: every logit
    of every step on every rank. capture_s: longest capture of one graph of this batch. operators: of one replay.
    """

    batch: int
    eager_ms: float
    replay_ms: float
    ratio: float
    bit_identical: bool
    capture_s: float
    steps: int
    operators: int


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `bench graphs` to the parser of `bench`."""
    sizes = f"{PRESET.layers} layers, hidden {PRESET.hidden}, {PRESET.experts} experts, top-{PRESET.topk}"
    parser = commands.add_parser(
        "graphs",
        help="measure decode steps in graphs against eager ones",
        description=f"Measures the decode steps of a random Qwen3-MoE ({sizes}, expert width {PRESET.expert_hidden},"
        f" vocabulary {PRESET.vocab}) on {RANKS} ranks with data-parallel attention: CPU time of the main thread per"
        " step, eager and replayed in turn, and whether all logits are equal bit for bit. Exit codes: 0 well, 1 a logit"
        " differs or a rank failed, 2 wrong usage.",
    )
    parser.set_defaults(run=run_graphs)
    parser.add_argument("--steps", type=int, default=60, help="steps of each kind per batch (default 60)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the records there")


def run_graphs(parsed: argparse.Namespace) -> int:
    """`bench graphs`."""
    records = measure(parsed.steps)
    if records is None:
        print("ascend-moe bench graphs: a rank failed; what it printed stands above", file=sys.stderr)
        return CHECK_FAILED
    print(table(records))
    if parsed.json is not None:
        parsed.json.write_bytes(msgspec.json.format(msgspec.json.encode(records), indent=1) + b"\n")
    return OK if all(record.bit_identical for record in records) else CHECK_FAILED


def measure(steps: int, sizes: TinySizes = PRESET, batches: tuple[int, ...] = BATCHES) -> list[GraphsRecord] | None:
    """Starts the ranks and returns their records; None if a rank failed."""
    with tempfile.TemporaryDirectory(prefix="ascend-moe-bench-") as name:
        folder = Path(name)
        run = GraphsRun(
            checkpoint=str(write_checkpoint(folder / "checkpoint", sizes=sizes)),
            results=str(folder / "results"),
            port=_free_port(),
            batches=batches,
            prompt_tokens=PROMPT_TOKENS,
            steps=steps,
        )
        (folder / "run").write_bytes(msgspec.json.encode(run))
        commands = [[sys.executable, "-m", RANK_MODULE, str(folder / "run"), str(rank)] for rank in range(RANKS)]
        if run_processes(commands) != OK:
            return None
        return msgspec.json.decode(Path(run.results).read_bytes(), type=list[GraphsRecord])


def table(records: list[GraphsRecord]) -> str:
    """The records for a terminal."""
    lines = ["batch  eager ms  replay ms  ratio  bit-identical  operators  capture s"]
    lines += [
        f"{item.batch:5d}  {item.eager_ms:8.2f}  {item.replay_ms:9.2f}  {item.ratio:5.2f}"
        f"  {'yes' if item.bit_identical else 'NO':>13}  {item.operators:9d}  {item.capture_s:9.2f}"
        for item in records
    ]
    return "\n".join(lines)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
