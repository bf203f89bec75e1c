"""A die of Atlas A3 (Ascend 910C), which is a rank: every constant with its unit, its source and what it may be.

Nothing here was measured by this project. CM: CloudMatrix384, arXiv 2506.12708; paper: arXiv 2605.06055.
"""

from __future__ import annotations

from typing import NamedTuple

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.plan.machine_times import ExchangeTimes, Line, Machine


class Constant(NamedTuple):
    """least, most: what the value could be on a device; equal where a data sheet says it."""

    value: float
    unit: str
    least: float
    most: float
    source: str


A3 = {
    "memory": Constant(64e9, "bytes", 64e9, 64e9, "CM, section 3.3: 64 GB a die"),
    "bf16_products": Constant(376e12, "operations/s", 280e12, 376e12, "CM: 752 TFLOPS of two dies"),
    "int8_products": Constant(752e12, "operations/s", 560e12, 752e12, "CM: 1,504 TOPS of two dies"),
    "product_part": Constant(0.78, "", 0.5, 0.827, "CM, INT8 GEMM: 77.4 to 82.7 %"),
    "attention_part": Constant(0.654, "", 0.4, 0.654, "CM, MLA bound by compute: 65.4 %"),
    "memory_rate": Constant(1.6e12, "bytes/s", 1.2e12, 1.6e12, "CM, section 3.3"),
    "memory_part": Constant(0.841, "", 0.6, 0.841, "CM, MLA bound by memory: 84.1 %"),
    "link_rate": Constant(137e9, "bytes/s", 100e9, 196e9, "CM: 196 GB/s a die; 0.7 of it, as msmodeling assumes"),
    "link_us": Constant(20, "us per collective", 5, 40, "assumed"),
    "ranks": Constant(16, "ranks of the exchange times", 8, 64, "assumed: the paper does not tell"),
    "doubling_us": Constant(7.2, "us per doubling of ranks", 0, 15, "CM, FusedDispatch: 116 us on 8, 152 us on 256"),
    "step_us": Constant(3000, "us per step", 1000, 8000, "assumed: scheduler and sampling"),
    "layer_us": Constant(150, "us per layer and step", 50, 300, "assumed: norms, quantising, routing, launches"),
    "imbalance": Constant(1.18, "", 1.0, 1.5, "CM, prefill: 6,688 tokens/s balanced, 5,655 as they come"),
    "transfer_rate": Constant(20e9, "bytes/s", 5e9, 25e9, "CM: 200 Gbit/s RDMA a die; 0.8 of it assumed"),
    "request_us": Constant(5000, "us per request", 1000, 20000, "assumed: HTTP, tokenizer, router"),
    "other_bytes": Constant(6e9, "bytes", 3e9, 10e9, "assumed: runtime, graphs, HCCL, activations"),
    "relay_bytes": Constant(1.536e9, "bytes", 1.2e9, 3.5e9, "HCCL_BUFFSIZE of prefill in SGLang's recipes"),
    "prefill_combine_part": Constant(1.0, "of dispatch", 0.6, 1.2, "assumed: the paper shows a curve, no number"),
}

MEAN_TOKENS = 80.0
"""Of the paper's decode batches, 16 to 144 tokens of each rank: what its averages stand for."""
_TOPK = 8
_PAPER_DECODE = {
    "relay-free": {"bf16": ((73.81, 104.48), (46.03, 70.23)), "int8": ((59.46, 71.48), (46.02, 69.80))},
    "buffer-centric": {"bf16": ((94.95, 124.73), (59.88, 89.76)), "int8": ((88.62, 101.06), (61.88, 91.41))},
}
"""us of dispatch and of combine with hidden 4096 and 7168: the paper's table 2."""
_PAPER_PREFILL = {"relay-free": (1.0, 6.8), "buffer-centric": (1.1, 9.4)}
"""ms of dispatch of 1,024 and of 16,384 bfloat16 tokens: the paper, figure 5."""


def paper_exchange(combine_part: float) -> dict[str, ExchangeTimes]:
    """The lines through the paper's points.

    Decode: through the times of both widths, whose rows carry different bytes at `MEAN_TOKENS` tokens. Prefill: through
    those of the fewest and the most tokens, of hidden 7168 (assumed); int8 rows, of which the paper gives no time, take
    the same fixed time and move half the bytes. combine_part: of a prefill combine, of the dispatch.
    """
    found = {}
    for schedule, by_rows in _PAPER_DECODE.items():
        for rows, (dispatch, combine) in by_rows.items():
            width = 1 if rows == "int8" else 2
            found[f"{schedule} decode {rows}"] = ExchangeTimes(_line(dispatch, width), _line(combine, 2))
        least, most = _PAPER_PREFILL[schedule]
        mb = 7168 * 2 * _TOPK / 1e6
        slope = (most - least) * 1e3 / ((16384 - 1024) * mb)
        line = Line(least * 1e3 - slope * 1024 * mb, slope)
        times = ExchangeTimes(line, Line(line.fixed_us * combine_part, line.us_per_mb * combine_part))
        found[f"{schedule} prefill bf16"] = found[f"{schedule} prefill int8"] = times
    return found


def _line(times: tuple[float, float], width: int) -> Line:
    """Through the times of hidden 4096 and 7168, with `width` bytes an element."""
    low, high = (hidden * width * MEAN_TOKENS * _TOPK / 1e6 for hidden in (4096, 7168))
    slope = (times[1] - times[0]) / (high - low)
    return Line(times[0] - slope * low, slope)


def a3_machine(**replaced: float) -> Machine:
    """replaced: constants with other values, by name. Raises `InvalidInput` for one that is none."""
    unknown = set(replaced) - set(A3)
    if unknown:
        raise InvalidInput(f"--constant {', '.join(sorted(unknown))}: must be of {', '.join(A3)}")
    value = {name: constant.value for name, constant in A3.items()} | replaced
    return Machine(
        name="Atlas A3",
        shared=False,
        memory=int(value["memory"]),
        products={"bf16": value["bf16_products"], "w8a8": value["int8_products"], "w4a8": value["int8_products"]},
        product_part=value["product_part"],
        attention_part=value["attention_part"],
        memory_rate=value["memory_rate"],
        memory_part=value["memory_part"],
        exchange=paper_exchange(value["prefill_combine_part"]),
        ranks=int(value["ranks"]),
        doubling_us=value["doubling_us"],
        link_rate=value["link_rate"],
        link_us=value["link_us"],
        step_us={"any": value["step_us"]},
        layer_us={"any": value["layer_us"]},
        token_us={"any": 0.0},
        imbalance=value["imbalance"],
        transfer_rate=value["transfer_rate"],
        transfer_us=0.0,  # in `request_us`
        request_us=value["request_us"],
        other_bytes=int(value["other_bytes"]),
        relay_bytes=int(value["relay_bytes"]),
    )
