"""`ascend-moe plan` tells the bytes that are then mapped, for the model that is named."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.launch import main as command
from sglang_ascend_moe.launch.plan.memory_plan import MemoryPlan
from sglang_ascend_moe.launch.plan.moe_config import MODELOPT_FILE, MODELSLIM_FILE, MoeShape, read_moe_shape
from sglang_ascend_moe.launch.plan.peer_memory import (
    deepep_bytes,
    sgl_kernel_npu_bytes,
    sgl_kernel_npu_documented_bytes,
)
from sglang_ascend_moe.launch.plan.sizes import exactly, in_units
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK, WRONG_USAGE
from tests.exchange.pool import Rank
from tests.exchange.process_state import mappings
from tests.serving.quantised_models import write_quantised

CONFIGS = {
    "Qwen3Moe": (
        {"hidden_size": 4096, "num_experts": 128, "num_experts_per_tok": 8, "torch_dtype": "bfloat16"},
        (4096, 128, 8, "bfloat16"),
    ),
    "DeepseekV3": (
        {"hidden_size": 7168, "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8},
        (7168, 256, 8, None),
    ),
    "Mixtral": (
        {"hidden_size": 4096, "num_local_experts": 8, "num_experts_per_tok": 2, "torch_dtype": "bfloat16"},
        (4096, 8, 2, "bfloat16"),
    ),
    "GptOss": (
        {"hidden_size": 2880, "num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4},
        (2880, 32, 4, None),
    ),
    "Llama4": (
        {
            "dtype": "bfloat16",
            "text_config": {"hidden_size": 5120, "num_local_experts": 16, "num_experts_per_tok": 1},
            "vision_config": {"hidden_size": 1408},
        },
        (5120, 16, 1, "bfloat16"),
    ),
    "Ernie4_5_Moe": ({"hidden_size": 2560, "moe_num_experts": 64, "moe_k": 6}, (2560, 64, 6, None)),
    "HunYuanMoE": ({"hidden_size": 4096, "num_experts": [64] * 3, "moe_topk": [8, 8, 8]}, (4096, 64, 8, None)),
    "Dbrx": ({"d_model": 6144, "ffn_config": {"moe_num_experts": 16, "moe_top_k": 4}}, (6144, 16, 4, None)),
    "LongcatFlash": ({"hidden_size": 6144, "n_routed_experts": 512, "moe_topk": 12}, (6144, 512, 12, None)),
    "dense": ({"hidden_size": 4096, "num_attention_heads": 32}, (4096, None, None, None)),
}
SHAPE = ["--hidden", "64", "--experts", "8", "--topk", "3", "--ranks", "2"]


def plan(*arguments: str) -> int:
    return command.main(["plan", "memory", *arguments])


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "file"])
def test_a_config_of_each_family_is_read(tmp_path: Path, family: str, as_folder: bool):
    config, expected = CONFIGS[family]
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"architectures": [family]} | config))
    assert read_moe_shape(tmp_path if as_folder else path) == MoeShape(family, *expected)


PLANS = {
    "one round": ["--max-tokens", "20"],
    "given window": ["--max-tokens", "500", "--decode-tokens", "10", "--window-bytes", "64KiB"],
    "int8": ["--max-tokens", "20", "--quant", "int8"],
    "two slots": ["--max-tokens", "20", "--slots", "2"],
    "checksums": ["--max-tokens", "20", "--verify"],
    "prefill": ["--max-tokens", "1000", "--role", "prefill", "--window-bytes", "100KiB"],
    "decode": ["--max-tokens", "9", "--role", "decode", "--dtype", "float32"],
}


def mapped_bytes(rank: Rank, arguments: dict) -> tuple[dict, list[int]]:
    """What an exchange says that it maps, and the sizes of the memory that this process shares once it is open."""
    import torch

    keywords = {name: value for name, value in arguments.items() if name != "ranks"}
    before = mappings()
    with Exchange.create(rank.group, **keywords | {"dtype": getattr(torch, arguments["dtype"])}) as exchange:
        sizes = [mapping.bytes for mapping in (mappings() - before).elements()]
        return msgspec.structs.asdict(exchange.window), sizes


@pytest.mark.parametrize("arguments", PLANS.values(), ids=PLANS)
def test_what_is_planned_is_what_is_mapped(make_pool, capsys: pytest.CaptureFixture[str], arguments: list[str]):
    assert plan(*SHAPE, *arguments, "--json") == OK
    planned = msgspec.json.decode(capsys.readouterr().out, type=MemoryPlan)
    for window, sizes in make_pool(2).run(mapped_bytes, msgspec.structs.asdict(planned.parameters)):
        assert window == msgspec.structs.asdict(planned.memory)
        # The own window and that of the other rank.
        assert sizes == [planned.memory.total] * 2


def test_text_shows_every_region_and_the_total(capsys: pytest.CaptureFixture[str]):
    assert plan(*SHAPE, "--max-tokens", "20", "--json") == OK
    memory = msgspec.json.decode(capsys.readouterr().out, type=MemoryPlan).memory
    assert plan(*SHAPE, "--max-tokens", "20") == OK
    shown = capsys.readouterr().out
    sizes = msgspec.structs.asdict(memory.regions)
    for name, size in {**sizes, "window of a rank": memory.total, "of all ranks": 2 * memory.total}.items():
        lines = [line.strip() for line in shown.splitlines()]
        expected = (in_units(size), f"{size:,}")
        assert size == 0 or any(
            line.startswith(name) and line.endswith(expected[1]) and expected[0] in line for line in lines
        )


def test_a_decode_step_that_does_not_fit_is_a_failed_check_with_the_remedy(capsys: pytest.CaptureFixture[str]):
    small = [*SHAPE, "--max-tokens", "500", "--window-bytes", "64KiB"]
    assert plan(*small, "--decode-tokens", "100") == CHECK_FAILED
    error = capsys.readouterr().err
    assert "--window-bytes 65536" in error
    assert "--decode-tokens" in error
    needed = error.split("Raise it to ")[1].split(",")[0]
    assert plan(*SHAPE, "--max-tokens", "500", "--window-bytes", needed, "--decode-tokens", "100") == OK
    fitting = error.rstrip().rsplit(" ", 1)[1]
    assert plan(*small, "--decode-tokens", fitting) == OK


def test_rounds_of_a_prefill_chunk_are_told(capsys: pytest.CaptureFixture[str]):
    assert plan(*SHAPE, *PLANS["prefill"], "--json") == OK
    planned = msgspec.json.decode(capsys.readouterr().out, type=MemoryPlan)
    capacity = planned.memory.capacity_rows
    # Top 3 of 4 local experts: a token sends at most 3 rows to a rank, so 6 rows of a round belong to a pair of tokens.
    assert planned.rounds_worst == -(-1000 // (capacity // 6))
    assert planned.rounds_even == -(-1000 * 3 // capacity)
    assert 1 < planned.rounds_even < planned.rounds_worst


def test_a_prefill_window_is_planned_as_a_server_has_it(capsys: pytest.CaptureFixture[str]):
    model = ["--hidden", "7168", "--experts", "256", "--topk", "8", "--ranks", "16", "--max-tokens", "3585"]

    def planned(*arguments: str) -> MemoryPlan:
        assert plan(*model, "--role", "prefill", *arguments, "--json") == OK
        return msgspec.json.decode(capsys.readouterr().out, type=MemoryPlan)

    default = planned()
    assert default.memory.capacity_rows == 2 * 3585 * 8
    assert (default.rounds_even, default.rounds_worst) == (1, 9)
    assert planned("--window-factor", "4").memory.capacity_rows == 4 * 3585 * 8
    assert planned("--device-memory", "8GiB").memory.total <= 2**30


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (["--max-tokens", "20", "--window-factor", "2", "--window-bytes", "1MiB"], "--window-factor"),
        (["--max-tokens", "20", "--window-factor", "0"], "--window-factor"),
        (["--max-tokens", "20", "--frobnicate"], "--frobnicate"),
        ([], "--max-tokens"),
        (["--max-tokens", "many"], "--max-tokens"),
        (["--max-tokens", "20", "--ranks", "3"], "--experts"),
        (["--max-tokens", "20", "--hidden", "100"], "--hidden"),
        (["--max-tokens", "20", "--topk", "9"], "--topk"),
        (["--max-tokens", "20", "--slots", "65"], "--slots"),
        (["--max-tokens", "20", "--role", "teacher"], "--role"),
        (["--max-tokens", "20", "--quant", "fp8"], "--quant"),
        (["--max-tokens", "20", "--dtype", "fp8"], "--dtype"),
        (["--max-tokens", "20", "--window-bytes", "lots"], "--window-bytes"),
        (["--max-tokens", "20", "--role", "decode", "--decode-tokens", "5"], "--decode-tokens"),
        (["--max-tokens", "20", "--decode-tokens", "21"], "--decode-tokens"),
        (["--max-tokens", "20", "--model", "no/such/model"], "--model"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_named_and_ends_with_exit_code_2(
    arguments: list[str], flag: str, capsys: pytest.CaptureFixture[str]
):
    try:
        code = plan(*SHAPE, *arguments)
    except SystemExit as ended:  # how argparse refuses
        code = ended.code
    assert code == WRONG_USAGE
    assert flag in capsys.readouterr().err


def test_a_window_that_cannot_hold_one_token_is_a_failed_check(capsys: pytest.CaptureFixture[str]):
    assert plan(*SHAPE, "--max-tokens", "20", "--window-bytes", "4096") == CHECK_FAILED
    assert "--window-bytes 4096" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["topk", "hidden"])
def test_what_a_config_does_not_say_is_asked_for_by_its_flag(
    tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
):
    config = {"hidden": ("hidden_size", 64), "experts": ("num_experts", 16), "topk": ("num_experts_per_tok", 3)}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(dict(value for name, value in config.items() if name != missing)))
    assert plan("--model", str(path), "--ranks", "2", "--max-tokens", "20") == WRONG_USAGE
    assert f"--{missing} is missing" in capsys.readouterr().err
    assert plan("--model", str(path), "--ranks", "2", "--max-tokens", "20", f"--{missing}", "16") == OK


SERVED = {"hidden_size": 64, "num_experts": 16, "num_experts_per_tok": 3}
REFUSED_MODELS = {
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, None, "is quantised (fp8)", "npu"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, None, "is quantised (awq)", "cpu"),
    "modelopt": ({}, MODELOPT_FILE, "is quantised (modelopt)", "npu"),
    "W8A8 on a host": (
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        None,
        "is quantised (compressed-tensors)",
        "cpu",
    ),
    "dense": ({"num_experts": 0}, None, "is not a mixture-of-experts model", "cpu"),
    "experts": ({"num_experts": 15}, None, "--ranks 2: 15 experts cannot be divided", "cpu"),
    "rows": ({"hidden_size": 72}, None, "72 elements (hidden_size)", "cpu"),
}


def model(folder: Path, changed: dict, beside: str | None) -> str:
    (folder / "config.json").write_text(json.dumps(SERVED | changed))
    if beside is not None:
        (folder / beside).write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    return str(folder)


@pytest.mark.parametrize(("changed", "beside", "said", "device"), REFUSED_MODELS.values(), ids=REFUSED_MODELS)
def test_a_model_that_is_not_served_is_a_failed_check(
    tmp_path: Path, changed: dict, beside: str | None, said: str, device: str, capsys: pytest.CaptureFixture[str]
):
    path = model(tmp_path, changed, beside)
    assert plan("--model", path, "--ranks", "2", "--max-tokens", "20", "--device", device) == CHECK_FAILED
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("device", ["npu", "cpu"])
def test_weights_of_modelslim_are_planned_for(tmp_path: Path, device: str):
    path = model(tmp_path, {}, MODELSLIM_FILE)
    assert plan("--model", path, "--ranks", "2", "--max-tokens", "20", "--device", device) == OK


# Numbers of the routed experts of a rank: 4 layers with MoE blocks, 8 experts of 16, three projections of 64 * 128.
NUMBERS = 4 * 8 * 3 * 64 * 128
# Scales and offsets, of 4 bits sums, too, all in the dtype of the model: 1 a channel of gate and up, 16 one of down.
CHANNELS = 4 * 8 * (2 * 64 + 128)
SUMS = 4 * 8 * (2 * 64 + 16 * 128)
# A host keeps numbers of 8 bits, as which it has those of 4, and scales in fp32.
KEPT = NUMBERS + CHANNELS * 4
EXPERT_BYTES = {
    "plain": (None, 2 * NUMBERS, 2 * NUMBERS),
    "W8A8": ("W8A8_DYNAMIC", KEPT, NUMBERS + 2 * CHANNELS * 2),
    "W4A8": ("W4A8_DYNAMIC", KEPT, NUMBERS // 2 + (2 * CHANNELS + SUMS) * 2),
}


@pytest.mark.parametrize(("kind", "host", "npu"), EXPERT_BYTES.values(), ids=EXPERT_BYTES)
def test_experts_are_counted_in_the_format_that_they_are_served_in(tmp_path: Path, capsys, kind, host, npu):
    folder = write_checkpoint(tmp_path / "plain")
    if kind is not None:
        folder = write_quantised(folder, tmp_path / "quantised", kind)
    for device, expected in {"cpu": host, "npu": npu}.items():
        assert plan("--model", str(folder), "--ranks", "2", "--max-tokens", "20", "--device", device, "--json") == OK
        assert msgspec.json.decode(capsys.readouterr().out, type=MemoryPlan).expert_bytes == expected
    assert plan("--model", str(folder / "config.json"), "--ranks", "2", "--max-tokens", "20", "--json") == OK
    assert msgspec.json.decode(capsys.readouterr().out, type=MemoryPlan).expert_bytes is None


def test_an_architecture_that_was_never_compared_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("MixtralForCausalLM", "Qwen3MoeForCausalLM"):
        path = model(tmp_path, {"architectures": [name]}, None)
        assert plan("--model", path, "--ranks", "2", "--max-tokens", "20") == OK
        assert ("was never compared" in capsys.readouterr().out) == name.startswith("Mixtral")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (40 * 2**30, "40.0 GiB"),
        (10**12, "931.3 GiB"),
        (10**13, "9.1 TiB"),
    ],
)
def test_bytes_are_shown_in_the_unit_that_fits(size: int, text: str):
    assert in_units(size) == text
    assert f"{size:,} bytes" in exactly(size) or exactly(size) == f"{size} bytes"


@pytest.mark.parametrize("text", ["{", "[1, 2]"], ids=["not json", "no object"])
def test_a_file_that_is_no_config_is_wrong_usage(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "config.json"
    path.write_text(text)
    assert plan("--model", str(path), "--ranks", "2", "--max-tokens", "20") == WRONG_USAGE
    assert "--model" in capsys.readouterr().err


def test_other_libraries_ask_for_what_their_formulas_say():
    # 128 tokens of DeepSeek-V3: two send and two receive buffers of 256 * 128 rows, and two of signals.
    dispatch, combine = 16 + 7168 * 2, 56 * 4 + 7168 * 2
    assert combine > dispatch
    assert deepep_bytes(8, 256, 7168, 128) == 2 * (2 * 256 * 128 * combine + 1024) + 128
    assert sgl_kernel_npu_bytes(8, 256, 7168, 128, 8) == 2 * (128 * 14848 * 8 * 32 + 128 * 14336 * 8)
    assert sgl_kernel_npu_documented_bytes(8, 256, 7168, 128, 8) == 2 * (128 * 8 * 8 * 14336 + 2097152)


def test_comparison_has_a_row_for_each_model_and_number_of_ranks(capsys: pytest.CaptureFixture[str]):
    assert command.main(["plan", "compare", "--max-tokens", "64", "--ep", "8,16"]) == OK
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| DeepSeek-V3", "8"], ["| DeepSeek-V3", "16"], ["| Qwen3-235B-A22B", "8"], ["| Qwen3-235B-A22B", "16"],
    ]  # fmt: skip
    ours = Exchange.memory(ranks=8, num_experts=256, hidden=7168, max_tokens=64, topk=8, distinct_topk=True).total
    assert rows[0].split(" | ")[2] == f"{ours / 2**20:,.0f}"


@pytest.mark.parametrize(("ranks", "experts"), [(64, 256), (128, 256), (256, 256), (384, 384)])
def test_no_other_library_asks_for_less_where_ranks_are_many(ranks, experts):
    ours = Exchange.memory(
        ranks=ranks, num_experts=experts, hidden=7168, max_tokens=128, topk=8, distinct_topk=True
    ).total
    assert ours < sgl_kernel_npu_documented_bytes(ranks, experts, 7168, 128, 8)
    assert ours < sgl_kernel_npu_bytes(ranks, experts, 7168, 128, 8)
    assert ours < deepep_bytes(ranks, experts, 7168, 128)


def test_stages_share_layers_and_have_ranks_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--model", str(write_checkpoint(tmp_path)), "--ranks", "2", "--max-tokens", "20", "--device", "cpu"]
    plans = []
    for stages in ([], ["--stages", "2"], ["--stages", "3"]):
        assert plan(*arguments, *stages, "--json") == OK
        plans.append(msgspec.json.decode(capsys.readouterr().out, type=MemoryPlan))
    one, two, three = plans
    assert (one.stages, two.stages, three.stages) == (1, 2, 3)
    assert one.memory == two.memory == three.memory
    # Of four layers the stage with most has two.
    assert (one.expert_bytes, two.expert_bytes, three.expert_bytes) == (2 * NUMBERS, NUMBERS, NUMBERS)
    assert plan(*arguments, "--stages", "2") == OK
    shown = capsys.readouterr().out
    assert "on 2 ranks of each of 2 stages" in shown
    assert f"{4 * one.memory.total:,}" in shown
    assert plan(*arguments, "--stages", "5") == WRONG_USAGE
    assert "--stages 5" in capsys.readouterr().err
