"""`ascend-moe plan`: the bytes of a configuration, before anything is allocated."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec

from sglang_ascend_moe.errors import InvalidInput, Unsupported, WindowTooSmall
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.launch.plan import calibrate_command, schedule_command
from sglang_ascend_moe.launch.plan.argument_types import positive, size_in_bytes
from sglang_ascend_moe.launch.plan.memory_plan import MemoryPlan, Request, Role, plan_memory
from sglang_ascend_moe.launch.plan.moe_config import MoeShape, read_moe_shape
from sglang_ascend_moe.launch.plan.peer_memory import (
    deepep_bytes,
    sgl_kernel_npu_bytes,
    sgl_kernel_npu_documented_bytes,
)
from sglang_ascend_moe.launch.plan.sizes import in_units
from sglang_ascend_moe.serving.host.checkpoint_bytes import weight_bytes
from sglang_ascend_moe.serving.host_platform import ascend_device_nodes
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK, WRONG_USAGE
from sglang_ascend_moe.serving.launcher.refusals import Division, refuse_model
from sglang_ascend_moe.serving.options import FLAGS, WINDOW_FACTOR, Options
from sglang_ascend_moe.serving.worker.moe_blocks import COMPARED_ARCHITECTURES
from sglang_ascend_moe.serving.worker.sizing import DEVICE_PART, SchedulerLimits, sized
from sglang_ascend_moe.serving.worker.sizing import Role as SchedulerRole
from sglang_ascend_moe.windows.layout import (
    ELEMENT_BYTES,
    ExchangeParameters,
    plan_window,
)

# Name, experts, top-k and hidden of the models that `plan compare` shows.
COMPARED = (("DeepSeek-V3", 256, 8, 7168), ("Qwen3-235B-A22B", 128, 8, 4096))
COMPARED_RANKS = (8, 16, 32, 64, 128)
MIB = 2**20
NO_MODEL = "model"
# The exchange names its parameters; people who type flags look for these.
_FLAGS = {
    "max_tokens": "--max-tokens", "num_experts": "--experts", "window_bytes": "--window-bytes", "hidden": "--hidden",
    "topk": "--topk", "dtype": "--dtype", "slots": "--slots", "ranks": "--ranks",
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Returns 1 if a server would refuse the model or the window, 2 for flags that cannot be."""
    parsed = _parser().parse_args(arguments)
    try:
        print(parsed.run(parsed))
    except (WindowTooSmall, Unsupported) as error:
        print(f"ascend-moe plan: {_with_flags(str(error))}", file=sys.stderr)
        return CHECK_FAILED
    except InvalidInput as error:
        print(f"ascend-moe plan: {_with_flags(str(error))}", file=sys.stderr)
        return WRONG_USAGE
    return OK


def _memory(parsed: argparse.Namespace) -> str:
    plan = plan_memory(request_of(parsed))
    if parsed.json:
        return msgspec.json.format(msgspec.json.encode(plan), indent=1).decode()
    return text_of(plan)


def request_of(parsed: argparse.Namespace) -> Request:
    """Raises `InvalidInput` naming the flag that is missing or wrong, `Unsupported` for a model that is not served."""
    read = MoeShape(NO_MODEL, None, None, None, None)
    if parsed.model is not None:
        read = read_moe_shape(parsed.model)
        require_served(parsed, read)
    shape = {}
    for name, parameter in (("hidden", "hidden"), ("experts", "num_experts"), ("topk", "topk")):
        value = getattr(parsed, name) or getattr(read, name)
        if value is None:
            where = f"{parsed.model} does not say it" if parsed.model else "there is no --model to read it from"
            raise InvalidInput(f"--{name} is missing: {where}; give it as a flag")
        shape[parameter] = value
    dtype = parsed.dtype or read.dtype or "bfloat16"
    if dtype not in ELEMENT_BYTES:
        raise InvalidInput(f"--dtype is missing: {parsed.model} says {dtype!r}, rows are {', '.join(ELEMENT_BYTES)}")
    if parsed.decode_tokens is not None and parsed.role != "both":
        raise InvalidInput(f"--decode-tokens {parsed.decode_tokens}: only with --role both; here --max-tokens says it")
    if parsed.decode_tokens is not None and parsed.decode_tokens > parsed.max_tokens:
        raise InvalidInput(f"--decode-tokens {parsed.decode_tokens}: more than --max-tokens {parsed.max_tokens}")
    parameters = ExchangeParameters(
        ranks=parsed.ranks, max_tokens=parsed.max_tokens, dtype=dtype, slots=parsed.slots, verify=parsed.verify,
        quant=None if parsed.quant == "none" else parsed.quant, window_bytes=parsed.window_bytes,
        # As the MoE layer does: routers choose distinct experts for a token.
        distinct_topk=not parsed.repeated_experts, **shape,
    )  # fmt: skip
    if parsed.window_bytes is None:
        parameters = sized(
            parameters, Options(window_factor=parsed.window_factor), _limits(parsed), parsed.device_memory
        )
    elif parsed.window_factor is not None:
        raise InvalidInput(
            f"--window-factor {parsed.window_factor:g}: --window-bytes says how large the window is; leave one out"
        )
    decode = {"prefill": 1, "decode": parsed.max_tokens, "both": parsed.decode_tokens or parsed.max_tokens}
    if read.layers is not None and parsed.stages > read.layers:
        raise InvalidInput(f"--stages {parsed.stages}: {parsed.model} has {read.layers} layers")
    bytes_of_rank = _expert_bytes(parsed, dtype, read.layers)
    return Request(read.name, parsed.role, parameters, decode[parsed.role], bytes_of_rank, parsed.stages)


def _expert_bytes(parsed: argparse.Namespace, dtype: str, layers: int | None) -> int | None:
    """Of one rank of the stage with most layers. Hosts keep experts that are integers, and dequantise the others."""
    if parsed.model is None or not parsed.model.is_dir():
        return None
    weights = weight_bytes(parsed.model, ELEMENT_BYTES[dtype], dequantised=parsed.device != "npu")
    if weights is None:
        return None
    of_stage = weights.experts
    if layers is not None:
        of_stage = -(-weights.experts * -(-layers // parsed.stages) // layers)
    return -(-of_stage // parsed.ranks)


def _limits(parsed: argparse.Namespace) -> SchedulerLimits:
    """Those of a scheduler that gives a rank so many tokens."""
    role: SchedulerRole = "null" if parsed.role == "both" else parsed.role
    return SchedulerLimits(parsed.decode_tokens or parsed.max_tokens, parsed.max_tokens, "--max-tokens", 1, role)


def require_served(parsed: argparse.Namespace, read: MoeShape) -> None:
    """Raise `Unsupported` if a server would refuse the model, or refuse it with so many ranks."""
    model = read.model(parsed.model)._replace(
        experts=parsed.experts or read.experts, hidden=parsed.hidden or read.hidden
    )
    ranks = Division(parsed.ranks, redundant=0, shown_as="--ranks", set_by="number of --ranks", redundant_set_by="")
    refuse_model(model, ranks, on_npu=parsed.device == "npu")


def text_of(plan: MemoryPlan) -> str:
    """The plan for people."""
    p, memory = plan.parameters, plan.memory
    stages = f" of each of {plan.stages} stages" if plan.stages > 1 else ""
    lines = [
        f"{plan.model}: {p.num_experts} experts on {p.ranks} ranks{stages}, top {p.topk}, rows of {p.hidden} {p.dtype}"
        + (f" as {p.quant}" if p.quant else ""),
        f"role {plan.role}, {p.max_tokens} tokens per rank, slots {p.slots}",
        "",
        f"{'':<20}{'size':>12}{'bytes':>22}",
        _line("window of a rank", memory.total),
        _line("of all ranks", memory.total * p.ranks * plan.stages),
        *([] if plan.expert_bytes is None else [_line("experts of a rank", plan.expert_bytes)]),
        "",
        "regions of a window:",
        *(_line(f"  {name}", size) for name, size in memory.by_region().items()),
        "",
        f"capacity {memory.capacity_rows:,} rows per slot; {plan.decode_tokens:,} tokens per rank fit into one round"
        " whatever their routing",
    ]
    if plan.role != "decode":
        lines.append(
            f"{p.max_tokens:,} tokens per rank take {plan.rounds_even} round(s) if ranks receive alike,"
            f" {plan.rounds_worst} at worst"
        )
    if plan.model not in (NO_MODEL, *COMPARED_ARCHITECTURES):
        lines.append(
            f"{plan.model} was never compared with stock SGLang: a server looks at its MoE blocks when the model is"
            " loaded, and refuses those that it does not know"
        )
    return "\n".join(lines)


def _line(name: str, size: int) -> str:
    return f"{name:<20}{in_units(size):>12}{size:>22,}"


def comparison(tokens: int = 128, numbers_of_ranks: Sequence[int] = COMPARED_RANKS) -> str:
    """A Markdown table: MiB per rank of ours, DeepEP and sgl-kernel-npu, for `tokens` of every rank.

    Raises `InvalidInput` for a number of ranks that does not divide the experts.
    """
    lines = [
        "| model | EP | ours | ours, two in flight | DeepEP | sgl-kernel-npu, code | sgl-kernel-npu, documented |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, experts, topk, hidden in COMPARED:
        for ranks in numbers_of_ranks:
            if experts % ranks:
                raise InvalidInput(f"--ep {ranks}: does not divide the {experts} experts of {name}")
            ours = [
                plan_window(
                    ExchangeParameters(
                        ranks=ranks, num_experts=experts, hidden=hidden, max_tokens=tokens, topk=topk,
                        distinct_topk=True, slots=slots,
                    )
                ).total_bytes
                for slots in (1, 2)
            ]  # fmt: skip
            theirs = (
                deepep_bytes(ranks, experts, hidden, tokens),
                sgl_kernel_npu_bytes(ranks, experts, hidden, tokens, topk),
                sgl_kernel_npu_documented_bytes(ranks, experts, hidden, tokens, topk),
            )
            cells = " | ".join(f"{size / MIB:,.0f}" for size in (*ours, *theirs))
            lines.append(f"| {name} | {ranks} | {cells} |")
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="ascend-moe plan", description=__doc__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    memory = commands.add_parser(
        "memory",
        help="bytes of a window, by region",
        description="Bytes of each rank's window by region, as they are mapped at start-up. Exit codes: 0 well, 1 a"
        " server would refuse the model, or the window cannot hold a decode step, 2 wrong usage.",
    )
    memory.set_defaults(run=_memory)
    memory.add_argument("--model", type=Path, metavar="PATH", help="a model's folder or config.json")
    memory.add_argument("--hidden", type=positive, help="elements per row (default: from --model)")
    memory.add_argument("--experts", type=positive, help="of all ranks together (default: from --model)")
    memory.add_argument("--topk", type=positive, help="experts per token (default: from --model)")
    memory.add_argument("--dtype", choices=ELEMENT_BYTES, help="of rows (default: from --model, else bfloat16)")
    memory.add_argument(
        "--device", choices=("cpu", "npu"), default="npu" if ascend_device_nodes() else "cpu",
        help="that the model is for (default: npu where there are NPUs)",
    )  # fmt: skip
    memory.add_argument("--quant", choices=("none", "int8"), default="none", help="how rows travel to experts")
    memory.add_argument("--ranks", type=positive, required=True, help="of the exchange")
    memory.add_argument(
        "--stages", type=positive, default=1,
        help="of a pipeline, each with --ranks of its own and a part of the layers (default 1)",
    )  # fmt: skip
    memory.add_argument(
        "--max-tokens", type=positive, required=True,
        help="most that one rank brings to one layer; with drafts every request brings all tokens of its tree",
    )  # fmt: skip
    memory.add_argument(
        "--role", choices=get_args(Role), default="both",
        help="decode: --max-tokens have to fit into one round; prefill: they may take several; both: --decode-tokens"
        " have to fit (default both)",
    )  # fmt: skip
    memory.add_argument("--decode-tokens", type=positive, help="with --role both (default: --max-tokens)")
    memory.add_argument(
        "--window-bytes", type=size_in_bytes, metavar="SIZE",
        help="of each rank, such as 64MiB (default: as a server has them)",
    )  # fmt: skip
    memory.add_argument(
        "--window-factor", type=float, metavar="FACTOR",
        help=f"as a server's --ascend-moe-window-factor (default {WINDOW_FACTOR:g})",
    )  # fmt: skip
    memory.add_argument(
        "--device-memory", type=size_in_bytes, metavar="SIZE",
        help=f"of an NPU, of which prefill makes windows take at most 1/{DEVICE_PART}",
    )  # fmt: skip
    memory.add_argument("--slots", type=positive, default=1, help="dispatches that can be open at a time (default 1)")
    memory.add_argument("--verify", action="store_true", help="with a checksum for every row")
    memory.add_argument(
        "--repeated-experts", action="store_true", help="a token may name an expert twice (no SGLang router does)"
    )
    memory.add_argument("--json", action="store_true", help="print the plan as JSON")

    schedule_command.add_command(commands)
    calibrate_command.add_commands(commands)

    compare = commands.add_parser("compare", help="the same guarantee in other libraries, as a Markdown table")
    compare.set_defaults(run=lambda parsed: comparison(parsed.max_tokens, parsed.ep))
    compare.add_argument("--max-tokens", type=positive, default=128, help="per rank and decode step (default 128)")
    compare.add_argument(
        "--ep", type=lambda text: [positive(item) for item in text.split(",")], default=list(COMPARED_RANKS),
        metavar="R,...", help="numbers of ranks (default 8 to 128)",
    )  # fmt: skip
    return parser


def _with_flags(message: str) -> str:
    """Names of the exchange's parameters, and flags of a server, as the flags that set them."""
    message = message.replace(FLAGS["window_factor"].flag, "--window-factor")
    for parameter, flag in _FLAGS.items():
        message = re.sub(rf"\b{parameter}=", f"{flag} ", message)
    return message.replace("num_experts", "--experts").replace("with distinct_topk=True", "without --repeated-experts")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
