"""Experts that have room for integers take those, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.host import kept_experts
from sglang_ascend_moe.serving.options import Options
from tests.serving.quantised_models import FP8, write_fp8, write_quantised

EXPERTS, HIDDEN, INTERMEDIATE = 4, 16, 8


class Layer(torch.nn.Module):
    """What is read of SGLang's FusedMoE before its weights are loaded."""

    def __init__(self) -> None:
        super().__init__()
        for name, to, inputs in (("w13", 2 * INTERMEDIATE, HIDDEN), ("w2", HIDDEN, INTERMEDIATE)):
            weight = torch.nn.Parameter(torch.empty(EXPERTS, to, inputs), requires_grad=False)
            weight.weight_loader = self.load
            self.register_parameter(f"{name}_weight", weight)

    def load(self, parameter: Any, loaded: torch.Tensor, expert_id: int) -> None:
        parameter.data[expert_id] = loaded


def test_integers_and_scales_are_loaded_by_the_layer_itself():
    moe = Layer()
    kept_experts.keep_integers(moe)
    found = {name: (part.dtype, list(part.shape)) for name, part in moe.named_parameters()}
    assert found == {
        "w13_weight": (torch.int8, [EXPERTS, 2 * INTERMEDIATE, HIDDEN]),
        "w13_weight_scale": (torch.float32, [EXPERTS, 2 * INTERMEDIATE, 1]),
        "w2_weight": (torch.int8, [EXPERTS, HIDDEN, INTERMEDIATE]),
        "w2_weight_scale": (torch.float32, [EXPERTS, HIDDEN, 1]),
    }
    numbers, scales = torch.full((HIDDEN, INTERMEDIATE), -7, dtype=torch.int8), torch.rand(HIDDEN, 1)
    moe.w2_weight.weight_loader(moe.w2_weight, numbers, expert_id=3)
    moe.w2_weight_scale.weight_loader(moe.w2_weight_scale, scales, expert_id=3)
    assert torch.equal(moe.w2_weight[3], numbers)
    assert torch.equal(moe.w2_weight_scale[3], scales)
    assert moe.w2_weight_scale.quant_method == "channel"


def test_floats_are_refused():
    moe = Layer()
    kept_experts.keep_integers(moe)
    floats = torch.ones(HIDDEN, INTERMEDIATE, dtype=torch.bfloat16)
    with pytest.raises(InvalidInput, match=r"experts in torch.bfloat16: .* give int8 weights and their scales"):
        moe.w2_weight.weight_loader(moe.w2_weight, floats, expert_id=3)


@pytest.mark.parametrize(
    ("kind", "asked", "kept"),
    [("W8A8_DYNAMIC", True, True), ("W4A8_DYNAMIC", True, True), ("W8A8_DYNAMIC", False, False), (FP8, True, False),
     (None, True, False)],
    ids=["W8A8", "W4A8", "without --ascend-moe", "fp8", "not quantised"],
)  # fmt: skip
def test_what_is_kept_is_known_to_whoever_reads_the_weights(monkeypatch, tmp_path, kind, asked, kept):
    from sglang.srt import runtime_context

    folder = write_checkpoint(tmp_path / "plain")
    if kind is not None:
        folder = (write_fp8 if kind == FP8 else write_quantised)(folder, tmp_path / "quantised", kind)
    arguments = SimpleNamespace(_ascend_moe_options=Options()) if asked else SimpleNamespace()
    monkeypatch.setattr(runtime_context, "get_server_args", lambda: arguments)
    monkeypatch.setattr(kept_experts, "moe_layers", lambda model: [model])
    config = SimpleNamespace(model_path=str(folder))
    moe = kept_experts.build_model(lambda *_: Layer(), config, None)
    assert moe.w13_weight.dtype == (torch.int8 if kept else torch.float32)
    assert kept_experts.are_kept(config) == kept
    assert not kept_experts.are_kept(None)
