"""`ascend-moe plan schedule`: which deployments of so many NPUs keep limits of latency, and at which request rate."""

from __future__ import annotations

import argparse
from math import ceil
from pathlib import Path
from typing import Any

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.launch.bench.output_files import can_plot, plot_path, require_file, write_json
from sglang_ascend_moe.launch.plan.argument_types import positive, size_in_bytes
from sglang_ascend_moe.launch.plan.machine_times import SCHEDULES, Machine, Schedule, read_machine
from sglang_ascend_moe.launch.plan.moe_config import config_values, read_moe_shape
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT
from sglang_ascend_moe.serving.launcher.refusals import Division, refuse_model

WEIGHTS = ("bf16", "w8a8", "w4a8")
SHOWN = 5
"""Deployments of each schedule that the table shows."""


def add_command(commands: Any) -> None:
    """Adds `schedule` to the parser of `plan`."""
    parser = commands.add_parser(
        "schedule",
        help="deployments that keep limits of latency, and the highest request rate of each",
        description="Computes the times of steps from the model's config and public figures of Atlas A3, lets requests"
        " queue in a simulation, and shows which deployments keep the limits, the best first, with and without relay"
        " buffers. No device has confirmed these times. Exit codes: 0 well, 1 no deployment keeps the limits, or a"
        " server would refuse the model, 2 wrong usage, 3 --plot needs matplotlib.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("--model", type=Path, metavar="PATH", required=True, help="a model's folder or config.json")
    parser.add_argument("--npus", type=positive, required=True, help="dies, each of which is a rank")
    parser.add_argument("--input", type=positive, default=3500, help="tokens of a request (default 3500)")
    parser.add_argument("--output", type=positive, default=1500, help="tokens of an answer (default 1500)")
    parser.add_argument("--ttft", type=_above_zero, default=5000.0, help="limit in ms (default 5000)")
    parser.add_argument("--tpot", type=_above_zero, default=50.0, help="limit in ms (default 50)")
    parser.add_argument("--rate", type=_above_zero, help="requests per second to be answered (default: as many as can)")
    parser.add_argument("--weights", choices=WEIGHTS, default="bf16", help="their format (default bf16)")
    parser.add_argument(
        "--accept-length", type=_above_zero, default=1.0, help="tokens that a step with drafts gives a request (1)"
    )
    parser.add_argument("--drafts", type=positive, help="tokens of a draft (default: as few as --accept-length takes)")
    parser.add_argument("--percentile", type=int, choices=(50, 90, 99), default=50, help="that keeps limits (50)")
    parser.add_argument("--hbm", type=size_in_bytes, metavar="SIZE", help="of an NPU (default: the machine's)")
    parser.add_argument(
        "--machine", type=Path, metavar="JSON", help="times of another machine, such as `plan calibrate` measures"
    )
    parser.add_argument(
        "--constant", action="append", default=[], metavar="NAME=VALUE",
        help="another value of a constant of Atlas A3 (docs/benchmarks/schedule.md)",
    )  # fmt: skip
    parser.add_argument("--candidates", type=positive, default=3, help="deployments of each kind to simulate (3)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write everything that was simulated there")
    parser.add_argument("--plot", type=plot_path, metavar="PATH", help="draw it; .svg, .png or .pdf")
    parser.add_argument(
        "--deployment", type=Path, metavar="TOML", help="write the best one with servers apart for `ascend-moe disagg`"
    )


def run(parsed: argparse.Namespace) -> str:
    """Raises `InvalidInput` for flags that cannot be, `Unsupported` if no deployment keeps the limits."""
    for flag, path in (("--json", parsed.json), ("--plot", parsed.plot), ("--deployment", parsed.deployment)):
        require_file(flag, path)
    if parsed.plot is not None and not can_plot("plan schedule"):
        raise SystemExit(CANNOT)
    read = read_moe_shape(parsed.model)
    machine = machine_of(parsed.machine, parsed.constant)
    one = Division(1, redundant=0, shown_as="--npus", set_by="number of --npus", redundant_set_by="")
    refuse_model(read.model(parsed.model), one, on_npu=not machine.shared)
    drafts = drafts_of(parsed.accept_length, parsed.drafts)
    # Queueing needs a library; help and mistakes do not.
    from sglang_ascend_moe.launch.plan import schedule_text
    from sglang_ascend_moe.launch.plan.feasible_rates import Choice, choices
    from sglang_ascend_moe.launch.plan.model_work import model_work
    from sglang_ascend_moe.launch.plan.topologies import Question

    folder = parsed.model if parsed.model.is_dir() else parsed.model.parent
    work = model_work(read.name, folder, config_values(parsed.model), f"--model {parsed.model}")
    question = Question(
        work, machine, parsed.npus, parsed.hbm or machine.memory, parsed.input, parsed.output, parsed.ttft / 1e3,
        parsed.tpot / 1e3, parsed.weights, drafts, parsed.accept_length, parsed.rate, parsed.percentile / 100,
    )  # fmt: skip
    found: dict[Schedule, list[Choice]] = {
        schedule: choices(question, schedule, parsed.candidates) for schedule in SCHEDULES
    }
    if parsed.json is not None:
        write_json(parsed.json, found)
    if parsed.plot is not None:
        from sglang_ascend_moe.launch.plan.schedule_plot import draw_schedules

        draw_schedules(question, found, parsed.plot)
    text = schedule_text.table(question, found, SHOWN)
    feasible = [choice for choice in found["relay-free"] if choice.feasible]
    if not feasible:
        print(text)
        binds = found["relay-free"][0].binds if found["relay-free"] else "memory, or an idle server,"
        raise Unsupported(
            f"no deployment of --npus {parsed.npus} keeps --ttft {parsed.ttft:g} and --tpot {parsed.tpot:g}: {binds} is"
            " in the way; raise the limits or --npus, or choose other --weights"
        )
    apart = next((choice for choice in feasible if choice.second is not None), None)
    if parsed.deployment is not None:
        if apart is None:
            print(text)
            raise Unsupported(
                f"--deployment {parsed.deployment}: no deployment with servers apart keeps the limits; use the flags of"
                " the best one"
            )
        parsed.deployment.write_text(schedule_text.deployment_toml(question, parsed.model, apart))
    return f"{text}\n\n{schedule_text.commands(question, parsed.model, feasible[0])}"


def machine_of(path: Path | None, constants: list[str]) -> Machine:
    """What --machine names, or Atlas A3 with other values of --constant. Raises `InvalidInput`."""
    from sglang_ascend_moe.launch.plan.a3_constants import a3_machine

    replaced = {}
    for text in constants:
        name, _, value = text.partition("=")
        try:
            replaced[name] = float(value)
        except ValueError:
            raise InvalidInput(f"--constant {text}: must be a name and a number, such as layer_us=100") from None
    if path is None:
        return a3_machine(**replaced)
    if constants:
        raise InvalidInput(f"--constant {constants[0]}: only of Atlas A3; change --machine {path} in place")
    return read_machine(path)


def drafts_of(accepted: float, given: int | None) -> int:
    """Tokens of a draft. Raises `InvalidInput` if they cannot give so many tokens a step."""
    if accepted < 1:
        raise InvalidInput(f"--accept-length {accepted:g}: must be at least 1")
    least = ceil(accepted) - 1
    if given is not None and given < least:
        raise InvalidInput(f"--accept-length {accepted:g}: needs --drafts of at least {least}, not {given}")
    return least if given is None else given


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value
