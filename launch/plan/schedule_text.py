"""What `plan schedule` says: a table, and the best deployment as commands and as a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isinf
from pathlib import Path

from sglang_ascend_moe.launch.plan.feasible_rates import Choice
from sglang_ascend_moe.launch.plan.machine_times import Schedule
from sglang_ascend_moe.launch.plan.topologies import Question, ServerChoice

NPUS_PER_NODE = 16
"""Dies of an Atlas 800I A3."""
GB = 1e9
_Flags = dict[str, int | str | bool]


def table(question: Question, found: Mapping[Schedule, Sequence[Choice]], shown: int) -> str:
    """The best of each schedule, and how the schedules compare."""
    part = f"{question.part:.0%}"
    lines = [
        f"{question.work.name} in {question.weights} on {question.npus} NPUs ({question.machine.name}):"
        f" {question.input_tokens:,} tokens in, {question.output_tokens:,} out,"
        f" TTFT < {question.ttft * 1e3:,.0f} ms and TPOT < {question.tpot * 1e3:,.0f} ms for {part} of the requests",
        "modelled, not measured; GB of each rank, those with servers apart of both roles",
        "",
        f"{'schedule':<15}{'servers x ranks (attention groups)':<46}{'requests/s':>11}{'TTFT ms':>9}{'p99':>9}"
        f"{'TPOT ms':>9}{'p99':>8}{'tokens/s':>10}  {'limit':<7}{'weights':>9}{'windows':>9}{'left for KV':>13}",
    ]
    for schedule, every in found.items():
        lines += [_row(schedule, choice) for choice in every[:shown]]
        if not every:
            lines.append(
                f"{schedule:<15}nothing fits into {question.memory / GB:.0f} GB, or keeps the limits when idle"
            )
    return "\n".join([*lines, "", difference(found)])


def difference(found: Mapping[Schedule, Sequence[Choice]]) -> str:
    """How many deployments each schedule makes feasible, and how much higher the best rate is."""
    counts = {schedule: (sum(choice.feasible for choice in every), len(every)) for schedule, every in found.items()}
    words = ", ".join(f"{schedule} {feasible} of {every}" for schedule, (feasible, every) in counts.items())
    best = {schedule: every[0].best.rate for schedule, every in found.items() if every and every[0].feasible}
    said = f"feasible of those simulated: {words}"
    if len(best) == len(found):
        said = f"best rate without relay buffers {best['relay-free'] / best['buffer-centric'] - 1:+.1%}; {said}"
    return said


def servers_in_words(choice: Choice) -> str:
    words = [_server_in_words(choice.first)]
    if choice.second is not None:
        words = [f"{words[0]} read", f"{_server_in_words(choice.second)} write"]
    return ", ".join(words)


def commands(question: Question, model: Path, choice: Choice) -> str:
    """The best one as command lines."""
    if choice.second is None:
        words = _words(_flags(question, choice.first, "null"))
        return f"each of {choice.first.instances} server(s):\nascend-moe serve {model} --device npu {words}"
    roles = (("prefill", choice.first), ("decode", choice.second))
    lines = []
    for role, server in roles:
        words = _words({"disaggregation-mode": role, **_flags(question, server, role)})
        lines.append(f"each of {server.instances} {role} server(s):\nascend-moe serve {model} --device npu {words}")
    return "\n".join(lines)


def deployment_toml(question: Question, model: Path, choice: Choice) -> str:
    """For `ascend-moe disagg`, which still has to be told the addresses of machines (`[ascend]`) for NPUs."""
    lines = [
        f"# {choice.best.rate:.2f} requests/s, TTFT {choice.best.ttft_ms:,.0f} ms, TPOT {choice.best.tpot_ms:.1f} ms:"
        " modelled by `ascend-moe plan schedule`, not measured.",
        f'model_path = "{model}"',
    ]
    for role, server in (("prefill", choice.first), ("decode", choice.second)):
        if server is None:
            continue
        flags = _flags(question, server, role)
        sizes = {"instances": server.instances, "nodes": _nodes(server), "tp_size": server.tp, "dp_size": server.dp,
                 "max_running_requests": server.running}  # fmt: skip
        if role == "prefill":
            sizes["chunked_prefill_size"] = server.chunk
        lines += ["", f"[{role}]", *(f"{name} = {value}" for name, value in sizes.items())]
        options = {name: value for name, value in flags.items() if name in _OPTIONS}
        if options:
            lines.append(
                "options = { " + ", ".join(f"{name} = {_toml(value)}" for name, value in options.items()) + " }"
            )
    return "\n".join(lines) + "\n"


_OPTIONS = (
    "ascend-moe-quant", "enable-dp-lm-head", "moe-dense-tp-size", "quantization", "speculative-algorithm",
    "speculative-num-steps", "speculative-eagle-topk", "speculative-num-draft-tokens",
)  # fmt: skip
"""Flags that a deployment does not set by keys of its own."""


def _flags(question: Question, server: ServerChoice, role: str) -> _Flags:
    flags: _Flags = {"tp-size": server.tp, "max-running-requests": server.running}
    if _nodes(server) > 1:
        flags["nnodes"] = _nodes(server)
    if server.dp > 1:
        flags |= {"dp-size": server.dp, "enable-dp-attention": True}
    if role != "decode":
        flags["chunked-prefill-size"] = server.chunk
    if question.weights != "bf16":
        flags |= {"quantization": "modelslim", "ascend-moe-quant": "int8"}
    if question.drafts:
        flags |= {
            "speculative-algorithm": "NEXTN", "speculative-num-steps": question.drafts, "speculative-eagle-topk": 1,
            "speculative-num-draft-tokens": question.drafts + 1,
        }  # fmt: skip
    return flags


def _nodes(server: ServerChoice) -> int:
    return -(-server.tp // NPUS_PER_NODE)


def _words(flags: _Flags) -> str:
    return " ".join(f"--{name}" if value is True else f"--{name} {value}" for name, value in flags.items())


def _toml(value: int | str | bool) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _server_in_words(server: ServerChoice) -> str:
    return f"{server.instances} x {server.tp} ({server.dp})"


def _row(schedule: str, choice: Choice) -> str:
    best = choice.best
    limit = choice.binds or "-"
    weights, windows, left = (
        "/".join(f"{getattr(one, name) / GB:.1f}" for one in choice.bytes) for name in ("weights", "windows", "left")
    )
    rate = f"{best.rate:.2f}" if choice.feasible else f"({best.rate:.2f})"
    return (
        f"{schedule:<15}{servers_in_words(choice):<46}{rate:>11}{_ms(best.ttft_ms, 0):>9}{_ms(best.ttft_p99_ms, 0):>9}"
        f"{_ms(best.tpot_ms, 1):>9}{_ms(best.tpot_p99_ms, 1):>8}{best.output_tokens_per_s:>10,.0f}  {limit:<7}"
        f"{weights:>9}{windows:>9}{left:>13}"
    )


def _ms(value: float, digits: int) -> str:
    return "never" if isinf(value) else f"{value:,.{digits}f}"
