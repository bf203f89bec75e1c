"""Measures this host for `plan`: its rates, its exchange, and what a step of its servers costs besides."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.launch.bench.records import Record, read_records
from sglang_ascend_moe.launch.bench.serving_client import ClientFailed, Load
from sglang_ascend_moe.launch.bench.serving_command import PRESET
from sglang_ascend_moe.launch.bench.serving_records import ServingRecord
from sglang_ascend_moe.launch.plan.machine_times import ExchangeTimes, Line, Machine, Phase
from sglang_ascend_moe.launch.plan.measured_servers import (
    CHUNK,
    MOST_RUNNING,
    VARIANTS,
    Deployed,
    deployments,
    served,
)
from sglang_ascend_moe.launch.plan.model_work import ModelWork, model_work
from sglang_ascend_moe.launch.plan.moe_config import config_values
from sglang_ascend_moe.launch.plan.request_queues import Latencies, ServerLimits, SimulatedRole, Workload, simulate
from sglang_ascend_moe.launch.plan.step_time import Placement, StepTimes, handover_seconds
from sglang_ascend_moe.serving.machine_limits import read_limits

WARM = Load(requests=4, concurrency=2, input_tokens=64, output_tokens=16)
"""What each server is asked first, for nothing."""
ALONE = Load(requests=8, concurrency=1, input_tokens=256, output_tokens=48)
SHORT = Load(requests=8, concurrency=1, input_tokens=32, output_tokens=8)
FULL = Load(requests=16, concurrency=MOST_RUNNING, input_tokens=32, output_tokens=64)
"""What each server is asked for calibration: a step with one request, a step with short prompts, a full step."""
GAP = 2e-3
"""Seconds, assumed: the client sends, and the server takes, one request after the other, so that those that come at
once are not all in the first step. Servers apart first agree on each, and then read at once what came at once."""
CORRECTIONS = 4
"""Times that what a full step takes is simulated and mended."""
ROOMY = 10**9
"""Tokens: memory limits none of these loads."""
TOKENS: dict[Phase, tuple[int, int]] = {"decode": (1, 8), "prefill": (64, 512)}
"""Of each rank, the fewest and the most with which the exchange is measured."""
SQUARE, WIDE, REPEATS = 1024, 4096, 9
"""Sides of the matrices that are multiplied, and that are read by a vector, and how often."""


class Asked(NamedTuple):
    """What is deployed, and a load that it is asked."""

    deployed: Deployed
    load: Load

    @property
    def name(self) -> str:
        load = self.load
        rate = f"{load.rate:g}/s" if load.rate else f"{load.concurrency} at a time"
        return f"{self.deployed.name}, {load.input_tokens}+{load.output_tokens} tokens, {rate}"


CHECKED = (
    Load(requests=16, concurrency=4, input_tokens=256, output_tokens=48),
    Load(requests=24, concurrency=8, input_tokens=128, output_tokens=32),
    Load(requests=16, concurrency=8, input_tokens=256, output_tokens=32, rate=0.5),
)
"""Loads that were not used for calibration."""


def calibrated(ranks: list[int], folder: Path, tell: Callable[[str], None]) -> Machine:
    """Fitted: for each server what decode and prefill steps, and each token in them, take that products, attention and
    exchange do not explain, from three loads. Everything else is measured by itself."""
    tell("products and memory")
    machine = _rates()
    for number in ranks:
        if number > 1:
            tell(f"exchange of {number} ranks")
            machine = msgspec.structs.replace(machine, exchange=machine.exchange | _exchange(number, folder))
    for deployed in deployments(ranks):
        tell(f"server: {deployed.name}")
        with served(folder, deployed) as ask:
            ask(WARM)
            work = work_in(folder / "model")
            if deployed.apart:
                machine = handing_over(machine, work, deployed, ask(ALONE))
            else:
                machine = fitted(machine, work, deployed, Calibration(ask(ALONE), ask(SHORT), ask(FULL)))
    return machine


def predicted(machine: Machine, work: ModelWork, asked: Asked, span: float | None = None) -> Latencies:
    """span: seconds until the last request came, for a load with a rate."""
    load, deployed = asked.load, asked.deployed
    waits = Workload(load.requests, load.input_tokens, load.output_tokens, load.rate, load.concurrency, span)
    steps = StepTimes(work, machine, Placement(deployed.ranks), deployed.schedule)
    role = SimulatedRole(1, steps, ServerLimits(CHUNK, MOST_RUNNING, ROOMY))
    if not deployed.apart:
        return simulate(waits, [role], gap=GAP)
    transfer = handover_seconds(work, machine, load.input_tokens, deployed.ranks)
    return simulate(waits, [role, role], transfer, shared=machine.shared)


def span_of(found: ServingRecord) -> float:
    """Seconds until the last request came, which is answered last."""
    answer = found.median_ttft_ms + found.median_tpot_ms * (found.output_tokens - 1)
    return max(0.0, found.requests * found.output_tokens / found.output_tokens_per_s - answer / 1e3)


def work_in(model: Path) -> ModelWork:
    return model_work(model.name, model, config_values(model), f"--model {model}")


class Calibration(NamedTuple):
    """Of one server, what was measured with each of the loads."""

    alone: ServingRecord
    short: ServingRecord
    full: ServingRecord


def fitted(machine: Machine, work: ModelWork, deployed: Deployed, found: Calibration) -> Machine:
    """With times of steps and tokens that give the TTFT of short and of long prompts, and the TPOT of one request and,
    simulated, of as many as can run: between their tokens others are read."""
    nothing = {"any": 0.0}
    bare = StepTimes(
        work, msgspec.structs.replace(machine, step_us=nothing, token_us=nothing), Placement(deployed.ranks),
        deployed.schedule,
    )  # fmt: skip

    def beside_decode(record: ServingRecord) -> float:
        context = record.input_tokens + record.output_tokens / 2
        return record.median_tpot_ms * 1e3 - bare.decode_seconds(record.concurrency, context) * 1e6

    def with_times(machine: Machine, phase: Phase, line: tuple[float, float]) -> Machine:
        key, (slope, fixed) = f"{deployed.schedule} {phase} {deployed.ranks}", line
        return msgspec.structs.replace(
            machine, token_us=machine.token_us | {key: slope}, step_us=machine.step_us | {key: fixed}
        )

    alone, short, full = found
    short_read, long_read = (_beside_prefill(bare, one) - GAP * 1e6 for one in (short, alone))
    read = _line(short.input_tokens, short_read, alone.input_tokens, long_read)
    machine = with_times(machine, "prefill", read)
    at_full = beside_decode(full)
    for _ in range(CORRECTIONS):
        written = _line(alone.concurrency, beside_decode(alone), full.concurrency, at_full)
        machine = with_times(machine, "decode", written)
        at_full += full.median_tpot_ms * 1e3 - predicted(machine, work, Asked(deployed, FULL)).median[1] * 1e6
    return machine


def handing_over(machine: Machine, work: ModelWork, deployed: Deployed, alone: ServingRecord) -> Machine:
    """Servers apart have the steps of one server of as many ranks; what their TTFT takes longer is the hand-over."""
    machine = msgspec.structs.replace(machine, transfer_us=0.0)
    steps = StepTimes(work, machine, Placement(deployed.ranks), deployed.schedule)
    sent = handover_seconds(work, machine, alone.input_tokens, deployed.ranks)
    return msgspec.structs.replace(machine, transfer_us=max(0.0, _beside_prefill(steps, alone) - sent * 1e6))


def _beside_prefill(steps: StepTimes, record: ServingRecord) -> float:
    """Microseconds of a TTFT without queue that `steps` do not explain."""
    return record.median_ttft_ms * 1e3 - steps.prefill_seconds(record.input_tokens, 1, 0.0) * 1e6


def _line(low: float, at_low: float, high: float, at_high: float) -> tuple[float, float]:
    """Slope and beginning of the line through two points, or where one of them would be below 0, of that through the
    second point that has none of it."""
    slope = (at_high - at_low) / (high - low)
    if slope < 0:
        return 0.0, max(0.0, at_high)
    beginning = at_low - slope * low
    return (slope, beginning) if beginning >= 0 else (max(0.0, at_high / high), 0.0)


def _rates() -> Machine:
    """What all cores multiply and read together."""
    import torch

    square = torch.randn(SQUARE, SQUARE, dtype=torch.bfloat16)
    wide, vector = torch.randn(WIDE, WIDE, dtype=torch.bfloat16), torch.randn(WIDE, 1, dtype=torch.bfloat16)
    products = 2 * SQUARE**3 / _seconds(lambda: torch.mm(square, square))
    read = 2 * WIDE**2 / _seconds(lambda: torch.mm(wide, vector))
    return Machine(
        name=f"host with {os.cpu_count()} cores", shared=True, memory=read_limits().memory_available,
        products={"bf16": products}, product_part=1.0, attention_part=1.0, memory_rate=read, memory_part=1.0,
        exchange={}, ranks=2, doubling_us=0.0, link_rate=read, link_us=0.0, step_us={}, layer_us={"any": 0.0},
        token_us={}, imbalance=1.0, transfer_rate=read, transfer_us=0.0, request_us=GAP * 1e6, other_bytes=0,
        relay_bytes=0,
    )  # fmt: skip


def _seconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return median(times)


def _exchange(ranks: int, folder: Path) -> dict[str, ExchangeTimes]:
    """Lines through the fewest and the most tokens. Raises `ClientFailed` if the benchmark does."""
    lines = {}
    for phase, tokens in TOKENS.items():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            records = Path(name, "records.json")
            command = [
                sys.executable, "-m", "sglang_ascend_moe.launch.main", "bench", "exchange", "--ranks", str(ranks),
                "--hidden", str(PRESET.hidden), "--tokens", ",".join(map(str, tokens)), "--topk", str(PRESET.topk),
                "--experts", str(PRESET.experts), "--phase", phase, "--against", ",".join(VARIANTS.values()),
                "--json", str(records),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode or not records.exists():
                raise ClientFailed(f"`ascend-moe bench exchange` ended with {done.returncode}\n{done.stderr[-2000:]}")
            found = read_records(records)
        for schedule, variant in VARIANTS.items():
            dispatch, combine = (line_of(found, variant, op) for op in ("dispatch", "combine"))
            lines[f"{schedule} {phase} bf16 {ranks}"] = ExchangeTimes(dispatch, combine)
    return lines


def line_of(records: list[Record], variant: str, op: str) -> Line:
    points = sorted(
        (record.tokens * record.topk * record.hidden * 2 / 1e6, record.median_us)
        for record in records
        if record.variant == variant and record.op == op and record.median_us is not None
    )
    slope, fixed = _line(*points[0], *points[-1])
    return Line(fixed, slope)
