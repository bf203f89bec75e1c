"""Whole engines on emulated NPUs with quantised checkpoints: W8A8 attention, experts in W8A8 or W4A8.

Judged by stock SGLang on one emulated NPU with the checkpoint that modelslim would write; that of compressed-tensors
has the same numbers, and stock SGLang ends with its W8A8. No NPU has run this.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_ascend_moe.launch.comparison import Answer, Tolerance, compare
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from tests.serving.configurations import PARALLEL, ours_on_npu, stock, stock_on_npu
from tests.serving.family_prompts import prompts_of_lengths
from tests.serving.prompts import NEW_TOKENS
from tests.serving.quantised_models import BITS, WEIGHTS_FILE, write_compressed, write_quantised
from tests.serving.rounding import distances, farther
from tests.serving.test_redundant_experts import (
    REBALANCE,
    assert_each_expert_is_the_same_everywhere,
    assert_no_token_changes_when_experts_move,
)

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

# Measured in W4A8 between one rank of ours and two, 224 tokens: a logprob moved by up to 1.02, as every rank of
# tensor-parallel attention quantises its part of a row with a scale of its own, and a token changed at up to 0.25.
RULE = Tolerance(logprob=1.25, margin=0.5)
MODELSLIM = {"quantization": "modelslim"}
GRAPHS = {"disable_cuda_graph": False, "cuda_graph_bs_decode": [4, 16], "ascend_moe_require_graphs": True}
INT8 = {"ascend_moe_quant": "int8"}
LONG_PROMPTS = prompts_of_lengths(1, 2, 3, 5, 9, 17, 33, 64, 65, 127, 200, 300)
# Weights, scales and offsets of two products; in W4A8 sums, too.
PARTS = {"W8A8_DYNAMIC": 6, "W4A8_DYNAMIC": 8}
SETUPS: dict[str, dict[str, Any]] = {
    "one rank": {"tp_size": 1},
    "tp2-ep2": PARALLEL["tp2-ep2"],
    "tp2-ep2 in graphs, int8 rows": {**PARALLEL["tp2-ep2"], **GRAPHS, **INT8},
    "dp2-attention-ep2, int8 rows": {**PARALLEL["dp2-attention-ep2"], **INT8},
    "dp2-attention-ep2 in graphs": {**PARALLEL["dp2-attention-ep2"], **GRAPHS},
}


class Quantised(NamedTuple):
    """A tiny Qwen3-MoE in one format, and what stock SGLang answers with it."""

    kind: str
    checkpoint: Path
    answers: list[Answer]


@pytest.fixture(scope="module", params=BITS)
def quantised(request, npu_fork_server, checkpoint, prompts, tmp_path_factory) -> Iterator[Quantised]:
    folder = write_quantised(checkpoint, tmp_path_factory.mktemp("quantised") / "model", request.param)
    with npu_fork_server.start(stock_on_npu(folder, **MODELSLIM)) as engine:
        answers = engine.generate(prompts, NEW_TOKENS)
    yield Quantised(request.param, folder, answers)
    shutil.rmtree(folder)


@pytest.mark.parametrize("setup", SETUPS)
def test_answers_are_those_of_stock_sglang(npu_fork_server, quantised, prompts, compare_all, setup):
    arguments = ours_on_npu(quantised.checkpoint, enable_metrics=True, **MODELSLIM, **SETUPS[setup])
    with npu_fork_server.start(arguments) as engine:
        outcomes = compare_all(engine, prompts, quantised.answers, RULE)
        replays = [state.graphs.replays for states in engine.inspect().states for state in states]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert {count > 0 for count in replays} == {"ascend_moe_require_graphs" in SETUPS[setup]}


@pytest.fixture(scope="module")
def exact(fork_server, quantised, prompts) -> list[Answer]:
    """What the weights that the quantised ones stand for answer in float32."""
    with fork_server.start(stock(quantised.checkpoint, "float32")) as engine:
        return engine.generate(prompts, NEW_TOKENS)


@pytest.mark.parametrize("setup", ["one rank", "tp2-ep2 in graphs, int8 rows", "dp2-attention-ep2, int8 rows"])
def test_checkpoints_of_compressed_tensors_are_as_far_from_the_dequantised_weights_as_those_of_modelslim(
    npu_fork_server, quantised, exact, checkpoint, prompts, tmp_path, setup
):
    """SGLang keeps scales of dense layers in float32 here, in bfloat16 there: a token may be another one."""
    folder = write_compressed(checkpoint, tmp_path / "model", quantised.kind)
    with npu_fork_server.start(ours_on_npu(folder, **SETUPS[setup])) as engine:
        answers = engine.generate(prompts, NEW_TOKENS)
    found, known = distances(exact, answers), distances(exact, quantised.answers)
    assert farther(found, known) == []


def test_experts_that_move_while_serving_change_no_token(npu_fork_server, quantised, prompts):
    arguments = ours_on_npu(
        quantised.checkpoint, "hash_experts_that_move", disable_radix_cache=True, **MODELSLIM, **REBALANCE
    )
    with npu_fork_server.start(arguments) as engine:
        assert_no_token_changes_when_experts_move(engine, prompts)
    assert_each_expert_is_the_same_everywhere(engine, PARTS[quantised.kind])


def test_answers_of_deepseek_v3_are_as_far_from_the_dequantised_weights_as_those_of_stock_sglang(
    fork_server, npu_fork_server, tmp_path
):
    folder = write_quantised(write_checkpoint(tmp_path / "plain", "deepseek_v3"), tmp_path / "model", "W4A8_DYNAMIC")
    configured = {
        "exact": (fork_server, stock(folder, "float32")),
        "stock": (npu_fork_server, stock_on_npu(folder)),
        "ours": (npu_fork_server, ours_on_npu(folder, **SETUPS["tp2-ep2 in graphs, int8 rows"])),
    }
    answers = {}
    for name, (server, configuration) in configured.items():
        with server.start(configuration) as engine:
            answers[name] = engine.generate(LONG_PROMPTS, NEW_TOKENS, together=True)
    known = distances(answers["exact"], answers["stock"])
    assert farther(distances(answers["exact"], answers["ours"]), known) == []


def _swap_nibbles(packed: torch.Tensor) -> torch.Tensor:
    numbers = packed.view(torch.uint8)
    return ((numbers << 4) | (numbers >> 4)).view(torch.int8)


def test_one_expert_with_swapped_nibbles_is_a_fault(npu_fork_server, quantised, prompts, tmp_path):
    tensors = load_file(quantised.checkpoint / WEIGHTS_FILE)
    harmed = "model.layers.3.mlp.experts.5.down_proj.weight"
    tensors[harmed] = _swap_nibbles(tensors[harmed])
    folder = Path(shutil.copytree(quantised.checkpoint, tmp_path / "harmed"))
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    with npu_fork_server.start(ours_on_npu(folder, **MODELSLIM)) as engine:
        answers = engine.generate(prompts, NEW_TOKENS)
    faults = [compare(*pair, RULE).fault for pair in zip(quantised.answers, answers, strict=True)]
    assert any(faults)
