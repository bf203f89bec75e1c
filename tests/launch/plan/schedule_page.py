"""Writes docs/benchmarks/schedule.md and its picture: what `plan schedule` computes beside what is published.

python -m tests.launch.plan.schedule_page
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.launch.plan.a3_constants import A3, a3_machine
from sglang_ascend_moe.launch.plan.feasible_rates import Choice, choices
from sglang_ascend_moe.launch.plan.machine_times import SCHEDULES, Machine, Schedule
from sglang_ascend_moe.launch.plan.model_work import ModelWork, model_work
from sglang_ascend_moe.launch.plan.request_queues import (
    Latencies,
    ServerLimits,
    SimulatedRole,
    Workload,
    simulate,
)
from sglang_ascend_moe.launch.plan.schedule_plot import draw_schedules
from sglang_ascend_moe.launch.plan.schedule_text import difference
from sglang_ascend_moe.launch.plan.step_time import Placement, StepTimes
from sglang_ascend_moe.launch.plan.topologies import Question
from tests.launch.plan.model_configs import DEEPSEEK_V3, QWEN3_235B
from tests.packaging.source_tree import ROOT

PAGE = ROOT / "docs/benchmarks/schedule.md"
PICTURE = PAGE.with_suffix(".svg")
ROOMY = 10**9
"""Tokens: memory limits none of the published runs."""
ACCEPTED = {0: 1.0, 1: 1.7, 2: 2.2, 3: 2.6}
"""Tokens of a step by drafts: 1.7 is CloudMatrix384's, longer drafts are assumed to gain less and less."""
WITHIN = 0.10
CASE_REQUESTS = 1500
LOOKED_AT = 12
RATES = (0.4, 0.6, 0.8, 0.9, 0.95, 1.0)
"""Parts of the best rate at which feasible deployments are counted."""


class PublishedRun(NamedTuple):
    """A recipe of SGLang for DeepSeek-R1 with DeepEP on Atlas A3, and its TPOT in ms. readers, writers: servers, ranks
    and attention groups."""

    name: str
    weights: str
    readers: tuple[int, int, int]
    writers: tuple[int, int, int]
    drafts: int
    concurrency: int
    input_tokens: int
    output_tokens: int
    tpot_ms: float


RUNS = (
    PublishedRun("2P1D, 3.5K+1.5K", "w8a8", (2, 16, 4), (1, 32, 32), 1, 1024, 3500, 1500, 50.0),
    PublishedRun("1P1D, 3.5K+1.5K", "w4a8", (1, 16, 8), (1, 16, 16), 2, 416, 3584, 1536, 50.0),
    PublishedRun("2P1D, 3.9K+1K", "w8a8", (2, 16, 2), (1, 32, 8), 3, 32, 3900, 1024, 19.0),
    PublishedRun("2P1D, 6K+1.6K", "w8a8", (2, 16, 2), (1, 32, 8), 3, 32, 6000, 1600, 20.5),
)
CASE = {"buffer-centric": (11_197.0, 30.10), "relay-free": (6_793.0, 31.31)}
"""The paper's TTFT and TPOT of DeepSeek 3.1, ms. It tells neither the deployment nor the load."""


def work_of(name: str, config: dict) -> ModelWork:
    return model_work(name, Path("/nowhere"), config.get, name)


DEEPSEEK = work_of("DeepSeek-V3", DEEPSEEK_V3)
QWEN = work_of("Qwen3-235B", QWEN3_235B)


def role(
    servers: tuple[int, int, int], machine: Machine, schedule: Schedule, limits: ServerLimits, weights: str, drafts: int
) -> SimulatedRole:
    instances, tp, dp = servers
    return SimulatedRole(instances, StepTimes(DEEPSEEK, machine, Placement(tp, dp, weights, drafts), schedule), limits)


def simulated_run(run: PublishedRun, schedule: Schedule, machine: Machine, requests: int) -> Latencies:
    """Of a load whose clients ask again when they have their answer, as SGLang's benchmark does."""
    per_step = ACCEPTED[run.drafts]
    roles = [
        role(run.readers, machine, schedule, ServerLimits(8192 * run.readers[2], 4096, ROOMY), run.weights, 0),
        role(run.writers, machine, schedule, ServerLimits(1, 4096, ROOMY, per_step), run.weights, run.drafts),
    ]
    load = Workload(requests, run.input_tokens, run.output_tokens, concurrency=run.concurrency)
    return simulate(load, roles, arrival=machine.request_us / 1e6).steady()


def constants_lines() -> Iterator[str]:
    yield "| constant | value | unit | may be | source |"
    yield "|---|---|---|---|---|"
    for name, one in A3.items():
        ends = f"{one.least:g}" if one.least == one.most else f"{one.least:g} to {one.most:g}"
        yield f"| `{name}` | {one.value:g} | {one.unit} | {ends} | {one.source} |"


def layer_us(drafts: int, per_die: int) -> float:
    machine = a3_machine()
    step = StepTimes(DEEPSEEK, machine, Placement(256, 256, "w8a8", drafts), "relay-free").decode(256 * per_die, 4096)
    return (step.total * 1e6 - A3["step_us"].value) / (61 + drafts)


def published_lines() -> Iterator[str]:
    """What others measured, and what the model says."""
    yield "| published | measured | modelled | modelled / measured |"
    yield "|---|---|---|---|"
    machine = a3_machine()
    step = StepTimes(DEEPSEEK, machine, Placement(256, 256, "w8a8", 1), "relay-free")
    # The published batches are of an NPU of two dies.
    tpot = step.decode(256 * 48, 4096).total * 1e3 / ACCEPTED[1]
    fast = step.decode(256 * 4, 4096).total * 1e3 / ACCEPTED[1]
    reading = StepTimes(DEEPSEEK, machine, Placement(32, 32, "w8a8"), "relay-free")
    tokens = 32 * 8192
    read = tokens / reading.prefill(tokens, 64).total / 16
    rows = [
        ("CM: layer of a decode step, us", 874, layer_us(0, 48)),
        ("CM: the same with one draft, us", 1260, layer_us(1, 48)),
        ("CM: TPOT of 96 requests an NPU, ms", 49.4, tpot),
        ("CM: TPOT of 8 requests an NPU, ms", 15, fast),
        ("CM: prefill, tokens/s an NPU", 5655, read),
        *(
            (f"SGLang, DeepSeek-R1 {run.weights}, {run.name}: TPOT, ms", run.tpot_ms,
             simulated_run(run, "buffer-centric", machine, 5 * run.concurrency).median[1] * 1e3)
            for run in RUNS
        ),
    ]  # fmt: skip
    for name, measured, modelled in rows:
        yield f"| {name} | {measured:,g} | {modelled:,.1f} | {modelled / measured:.2f} |"


def supernode_lines(work: ModelWork, ranks: tuple[int, ...]) -> Iterator[str]:
    """Decode steps with an attention group on each rank."""
    machine = a3_machine()
    for tp in ranks:
        found = {
            schedule: StepTimes(work, machine, Placement(tp, tp, "w8a8"), schedule).decode(48 * tp, 4096)
            for schedule in SCHEDULES
        }
        ours, theirs = found["relay-free"], found["buffer-centric"]
        parts = " | ".join(f"{part * 1e3:.1f}" for part in (ours.products, ours.attention, ours.exchange, ours.fixed))
        yield (
            f"| {work.name} | {tp} | {parts} | {ours.total * 1e3:.1f} | {theirs.total * 1e3:.1f} |"
            f" {theirs.total / ours.total - 1:.1%} | {48 / ours.total:,.0f} |"
        )


class Hypothesis(NamedTuple):
    """How the paper's case may have been served. readers, writers: servers, ranks and attention groups."""

    readers: tuple[int, int, int]
    writers: tuple[int, int, int]
    input_tokens: int
    drafts: int = 1


class CaseFound(NamedTuple):
    """The paper's serving case under one hypothesis. rate, output_tokens: with which TTFT and TPOT with relay buffers
    are the paper's. found: by schedule, median TTFT and TPOT in ms. busier: the same with a rate that is 2% higher."""

    tried: Hypothesis
    rate: float
    output_tokens: int
    found: dict[Schedule, tuple[float, float]]
    busier: dict[Schedule, tuple[float, float]]

    def errors(self) -> list[float]:
        """Of TTFT and TPOT of each schedule over the paper's."""
        return [
            mine / papers - 1 for schedule in SCHEDULES
            for mine, papers in zip(self.found[schedule], CASE[schedule], strict=True)
        ]  # fmt: skip


def at_rate(tried: Hypothesis, schedule: Schedule, rate: float, output_tokens: int) -> tuple[float, float]:
    """Median TTFT and TPOT in ms of requests that come by a Poisson process."""
    machine, per_step = a3_machine(), ACCEPTED[tried.drafts]
    roles = [
        role(tried.readers, machine, schedule, ServerLimits(8192 * tried.readers[2], 4096, ROOMY), "w8a8", 0),
        role(tried.writers, machine, schedule, ServerLimits(1, 4096, ROOMY, per_step), "w8a8", tried.drafts),
    ]
    load = Workload(CASE_REQUESTS, tried.input_tokens, output_tokens, rate=rate)
    ttft, tpot = simulate(load, roles, arrival=machine.request_us / 1e6).steady().median
    return ttft * 1e3, tpot * 1e3


def case(tried: Hypothesis) -> CaseFound:
    """Fits the rate to the paper's TTFT with relay buffers, then the length of answers to its TPOT with these."""
    ttft, tpot = CASE["buffer-centric"]
    low, high = 0.01, 100.0
    while high / low > 1.002:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if at_rate(tried, "buffer-centric", middle, 2)[0] < ttft else (low, middle)
    short, long = 2, 4096
    while long - short > 1:
        answer = (short + long) // 2
        under = at_rate(tried, "buffer-centric", low, answer)[1] < tpot
        short, long = (answer, long) if under else (short, answer)
    found, busier = (
        {schedule: at_rate(tried, schedule, rate, short) for schedule in SCHEDULES} for rate in (low, low * 1.02)
    )
    return CaseFound(tried, low, short, found, busier)


def hypotheses() -> Iterator[Hypothesis]:
    for readers, writers in (((1, 16, 4), (1, 32, 32)), ((1, 16, 16), (1, 32, 32))):
        for tokens in (4096, 8192, 12288, 16384):
            yield Hypothesis(readers, writers, tokens)


def case_lines(found: list[CaseFound]) -> Iterator[str]:
    yield (
        "| read | write | in | out | requests/s | TTFT relay | relay-free | TPOT relay | relay-free | worst |"
        " 2% more: TTFT |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    yield "| paper | | | | | 11,197 | 6,793 | 30.1 | 31.3 | | |"
    for one in sorted(found, key=lambda case: max(map(abs, case.errors()))):
        tried = one.tried
        (free_ttft, free_tpot), (ttft, tpot) = one.found["relay-free"], one.found["buffer-centric"]
        busier = " / ".join(f"{one.busier[schedule][0]:,.0f}" for schedule in ("buffer-centric", "relay-free"))
        yield (
            f"| {_servers(tried.readers)} | {_servers(tried.writers)} | {tried.input_tokens:,} |"
            f" {one.output_tokens:,} | {one.rate:.3g} | {ttft:,.0f} | {free_ttft:,.0f} | {tpot:.1f} |"
            f" {free_tpot:.1f} | {max(one.errors(), key=abs):+.0%} | {busier} |"
        )


def _servers(servers: tuple[int, int, int]) -> str:
    return f"{servers[0]} x {servers[1]} ({servers[2]})"


def gains(machine: Machine) -> tuple[float, float]:
    """How much longer a decode and a prefill step take with relay buffers: 48 requests and 8,192 tokens a rank."""
    steps = {schedule: StepTimes(DEEPSEEK, machine, Placement(32, 32, "w8a8"), schedule) for schedule in SCHEDULES}
    decode = steps["buffer-centric"].decode(48 * 32, 4096).total / steps["relay-free"].decode(48 * 32, 4096).total
    prefill = steps["buffer-centric"].prefill(32 * 8192, 64).total / steps["relay-free"].prefill(32 * 8192, 64).total
    return decode - 1, prefill - 1


def sensitivity_lines() -> Iterator[str]:
    """What the gain is with each constant at either end; those that move neither are left out."""
    yield "| constant | decode, at its least | most | prefill, at its least | most |"
    yield "|---|---|---|---|---|"
    usual = gains(a3_machine())
    yield f"| as above | {usual[0]:.1%} | {usual[0]:.1%} | {usual[1]:.1%} | {usual[1]:.1%} |"
    for name, one in A3.items():
        least, most = (gains(a3_machine(**{name: end})) for end in (one.least, one.most))
        if max(abs(end[kind] - usual[kind]) for end in (least, most) for kind in (0, 1)) >= 0.001:
            yield f"| `{name}` | {least[0]:.1%} | {most[0]:.1%} | {least[1]:.1%} | {most[1]:.1%} |"


def region_lines(found: Mapping[Schedule, Sequence[Choice]]) -> Iterator[str]:
    """How many deployments keep the limits at a rate, in parts of the best one of all."""
    best = max(every[0].best.rate for every in found.values())
    yield "| requests/s | " + " | ".join(found) + " |"
    yield "|---|" + "---|" * len(found)
    for part in RATES:
        counts = [sum(one.feasible and one.best.rate >= part * best for one in every) for every in found.values()]
        yield f"| {part * best:.2f} | " + " | ".join(map(str, counts)) + " |"


def page() -> str:
    asked = Question(DEEPSEEK, a3_machine(), 64, int(A3["memory"].value), 3500, 1500, 5.0, 0.06, "w8a8", 1, ACCEPTED[1])
    feasible = {schedule: choices(asked, schedule, 3) for schedule in SCHEDULES}
    region = {schedule: choices(asked, schedule, LOOKED_AT) for schedule in SCHEDULES}
    draw_schedules(asked, feasible, PICTURE)
    found = [case(run) for run in hypotheses()]
    near = sum(max(map(abs, one.errors())) <= WITHIN for one in found)
    ranks = (16, 32, 64, 128, 256, 384)
    return "\n".join(
        [
            "# Which deployments are feasible",
            "",
            "`ascend-moe plan schedule` computes the time of a step from bytes and operations"
            " ([step_time.py](../../launch/plan/step_time.py)), and lets requests queue in a simulation"
            " ([request_queues.py](../../launch/plan/request_queues.py)). **No device has confirmed its times; use it"
            " to compare deployments.** On a host it was held against [measurements](predictions.md). `python -m"
            " tests.launch.plan.schedule_page` writes this page.",
            "",
            "## Beside what is published",
            "",
            "Nothing was fitted to these. CM: CloudMatrix384 with its own kernels, which overlap exchange and products"
            " (two micro-batches); the model overlaps nothing. SGLang: the TPOT that its recipes name, with"
            " DeepEP. Tokens of a step are"
            f" {', '.join(f'{value:g} with {key} drafts' for key, value in ACCEPTED.items() if key)}: the first is"
            " CM's, the others are assumed.",
            "",
            *published_lines(),
            "",
            "## Expert parallelism of 16 to 384 ranks",
            "",
            "A decode step of 48 requests of 4,096 tokens on each die, W8A8, no drafts; ms. Where ranks do not divide"
            " the experts, some are there twice. Tokens per second are of a die, without relay.",
            "",
            "| model | ranks | products | attention | exchange | fixed | relay-free | relay | longer by | tokens/s |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *supernode_lines(DEEPSEEK, ranks),
            *supernode_lines(QWEN, ranks),
            "",
            "## The paper's serving case",
            "",
            "TTFT 11,197 to 6,793 ms, TPOT 30.1 to 31.3 ms (DeepSeek 3.1). The paper tells neither deployment nor load,"
            f" so {len(found)} were tried, W8A8 with one draft. **Two of the four numbers are fitted**: the request"
            " rate gives the TTFT with relay buffers, the length of answers the TPOT with these. The other two follow:"
            f" {near} of {len(found)} come within {WITHIN:.0%}.",
            "",
            *case_lines(found),
            "",
            "Servers are number x ranks (attention groups); times in ms, medians. A TTFT that is 39% shorter follows"
            " from a prefill step that is a few percent shorter only close to where the queue grows without end: there"
            " 2%"
            " more requests change it as much (last column, with and without relay). The model has no reason for a TPOT"
            " that rises.",
            "",
            "## The feasible region",
            "",
            f"DeepSeek-V3, W8A8, 64 dies, 3,500 tokens in and 1,500 out, TTFT < 5,000 ms, TPOT < 60 ms:"
            f" {difference(feasible)}.",
            "",
            f"Of the {LOOKED_AT} most promising deployments with servers apart and the {LOOKED_AT} without, so many"
            " keep the limits at a rate (the paper says that without relay buffers more do, and at higher rates; it"
            " gives no numbers):",
            "",
            *region_lines(region),
            "",
            "![TTFT over TPOT of every simulated rate, and the best rate of each deployment](schedule.svg)",
            "",
            "## How much depends on what",
            "",
            "How much longer a step of 32 dies takes with relay buffers, with each constant at the ends of what it may"
            " be:",
            "",
            *sensitivity_lines(),
            "",
            "## Constants",
            "",
            "[a3_constants.py](../../launch/plan/a3_constants.py); CM: arXiv 2506.12708. Exchange times are the"
            " paper's: decode lines through both widths, prefill lines through the fewest and the most tokens.",
            "",
            *constants_lines(),
            "",
            "## What is left out",
            "",
            "Overlap of any kind, prefix caches, lengths that differ, uneven routing beyond `imbalance`, prefill that"
            " is delayed to fill batches, sparse attention.",
            "",
        ]
    )


if __name__ == "__main__":
    PAGE.write_text(page())
