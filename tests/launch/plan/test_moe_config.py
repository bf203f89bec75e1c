"""What is read of a checkpoint without SGLang is what SGLang reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.plan.moe_config import MODELOPT_FILE, MODELSLIM_FILE, read_moe_shape
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.launch.tiny_model.families import FAMILIES
from sglang_ascend_moe.serving.launcher.refusals import NPU_QUANTISATIONS, expert_count
from sglang_ascend_moe.serving.worker.moe_blocks import COMPARED_ARCHITECTURES
from tests.serving.vision_model import write_vision_checkpoint

VISION = "qwen3_vl_moe"
MODELS = (*FAMILIES, VISION)
BY_CHANNEL = {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
QUANTISED = {
    "not": ({}, {}),
    "null": ({"quantization_config": None}, {}),
    "fp8": ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}, {}),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}}, {}),
    "fp8 in blocks": ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}, {}),
    "compressed-tensors": ({"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}}, {}),
    "compressed-tensors by channel": (
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"group_0": BY_CHANNEL}}},
        {},
    ),
    "modelslim": ({}, {MODELSLIM_FILE: {"model_quant_type": "W8A8_DYNAMIC"}}),
    "modelopt fp8": ({}, {MODELOPT_FILE: {"quantization": {"quant_algo": "FP8"}}}),
    "modelopt nvfp4": ({}, {MODELOPT_FILE: {"quantization": {"quant_algo": "NVFP4"}}}),
    "modelopt mixed": ({}, {MODELOPT_FILE: {"quantization": {"quant_algo": "MIXED_PRECISION"}}}),
    "modelopt mxfp8": ({}, {MODELOPT_FILE: {"quantization": {"quant_algo": "MXFP8"}}}),
    "modelopt keys and values only": ({}, {MODELOPT_FILE: {"quantization": {"kv_cache_quant_algo": "FP8"}}}),
}


def checkpoint_of(folder: Path, model: str) -> Path:
    """A tiny one of a family, or of `VISION`."""
    return write_vision_checkpoint(folder) if model == VISION else write_checkpoint(folder, model)


@pytest.mark.parametrize("model", MODELS)
def test_experts_and_rows_of_every_model_are_those_of_sglang(tmp_path: Path, model: str):
    from sglang.srt.configs.model_config import ModelConfig

    folder = checkpoint_of(tmp_path, model)
    shape = read_moe_shape(folder)
    text_config = ModelConfig(str(folder)).hf_text_config
    assert shape.experts == expert_count(lambda name: getattr(text_config, name, None))
    assert (shape.hidden, shape.topk) == (text_config.hidden_size, text_config.num_experts_per_tok)
    assert shape.name in COMPARED_ARCHITECTURES


def test_every_compared_architecture_is_of_a_model_that_is_served_here(tmp_path: Path):
    names = {read_moe_shape(checkpoint_of(tmp_path / model, model)).name for model in MODELS}
    assert names == set(COMPARED_ARCHITECTURES)


@pytest.mark.parametrize(("changed", "beside"), QUANTISED.values(), ids=QUANTISED)
def test_a_checkpoint_is_quantised_if_sglang_says_so(tmp_path: Path, changed: dict, beside: dict):
    """SGLang tells more kinds apart, all of which are refused: those that are served on NPUs have its names."""
    from sglang.srt.configs.model_config import ModelConfig

    folder = write_checkpoint(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changed))
    for name, content in beside.items():
        (folder / name).write_text(json.dumps(content))
    shape = read_moe_shape(folder)
    theirs, ours = ModelConfig(str(folder)).quantization, shape.quantisation
    if shape.multiplied_out:
        # Where the hooks of a host are active, SGLang sees a model that is not quantised.
        assert theirs in (ours, None)
        return
    assert (ours is None) == (theirs is None)
    assert ours == theirs or not {ours, theirs} & {*NPU_QUANTISATIONS}
