"""SGLang's own serving benchmark as the client of a server, and what it reports."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.launch.bench.serving_records import ServingRecord
from sglang_ascend_moe.serving.launcher import interrupts

CLIENT_SECONDS = 900.0


class ClientFailed(Exception):
    """The client ended with an error, or lost a request. The message holds the end of what it printed."""


class Load(NamedTuple):
    """What the client asks for. Tokens are those of each request; `concurrency` requests are under way at a time.

    rate: requests per second, by a Poisson process; None: as soon as there is room.
    """

    requests: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    rate: float | None = None


class _Report(msgspec.Struct):
    """The part of the client's report that is kept."""

    completed: int
    output_throughput: float
    median_ttft_ms: float
    p99_ttft_ms: float
    median_tpot_ms: float
    p99_tpot_ms: float
    accept_length: float | None = None


def drive(url: str, tokenizer: str, load: Load, *, variant: str, round_number: int) -> ServingRecord:
    """Put `load` on the server at `url`. The same round asks every variant the same. Raises `ClientFailed`."""
    with interrupts.raised(), tempfile.TemporaryDirectory(prefix="ascend-moe-bench-") as folder:
        report = Path(folder, "report.jsonl")
        command = [
            sys.executable, "-m", "sglang.benchmark.serving", "--backend", "sglang", "--base-url", url,
            "--dataset-name", "random-ids", "--tokenizer", tokenizer, "--tokenize-prompt", "--disable-tqdm",
            "--random-input-len", str(load.input_tokens), "--random-output-len", str(load.output_tokens),
            "--random-range-ratio", "1.0", "--num-prompts", str(load.requests), "--seed", str(round_number),
            "--max-concurrency", str(load.concurrency), "--warmup-requests", str(load.concurrency),
            "--output-file", str(report), *([] if load.rate is None else ["--request-rate", str(load.rate)]),
        ]  # fmt: skip
        try:
            client = subprocess.run(command, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise ClientFailed(f"{variant}: the client was not done after {CLIENT_SECONDS:.0f} s") from None
        if client.returncode != 0 or not report.exists():
            raise ClientFailed(f"{variant}: the client ended with {client.returncode}\n{client.stderr[-2000:]}")
        # Not msgspec.json, which takes no `Infinity`: the rate of requests that do not wait.
        found = msgspec.convert(json.loads(report.read_text().splitlines()[-1]), _Report)
    if found.completed != load.requests:
        raise ClientFailed(f"{variant}: {found.completed} of {load.requests} requests were answered")
    return ServingRecord(
        variant=variant,
        round=round_number,
        requests=load.requests,
        concurrency=load.concurrency,
        input_tokens=load.input_tokens,
        output_tokens=load.output_tokens,
        completed=found.completed,
        median_ttft_ms=found.median_ttft_ms,
        p99_ttft_ms=found.p99_ttft_ms,
        median_tpot_ms=found.median_tpot_ms,
        p99_tpot_ms=found.p99_tpot_ms,
        output_tokens_per_s=found.output_throughput,
        tokens_per_step=found.accept_length or 1.0,
    )
