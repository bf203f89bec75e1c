"""Activations between the products of an expert, against formulas written out in float64."""

import argparse
import math

import pytest
import torch

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.worker.expert_activations import activation_of


def layer(activation: str = "silu", **settings: object) -> argparse.Namespace:
    config = argparse.Namespace(
        activation=activation, is_gated=True, gate_up_interleaved=True, gemm1_alpha=None, gemm1_clamp_limit=None,
        swiglu_limit=None,
    )  # fmt: skip
    vars(config).update(settings)
    return argparse.Namespace(moe_runner_config=config)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def clamped(value: float, limit: float) -> float:
    return max(-limit, min(limit, value))


def deepseek_v4(gate: float, up: float) -> float:
    gate = min(gate, 1.5)
    return gate * sigmoid(gate) * clamped(up, 1.5)


def step3p5(gate: float, up: float) -> float:
    return min(gate * sigmoid(gate), 1.5) * clamped(up, 1.5)


def gpt_oss(gate: float, up: float) -> float:
    gate = min(gate, 1.5)
    return gate * sigmoid(1.702 * gate) * (clamped(up, 1.5) + 1)


def kimi_k3(gate: float, up: float) -> float:
    return 4.0 * math.tanh(gate / 4.0) * sigmoid(gate) * 25.0 * math.tanh(up / 25.0)


FORMULAS = {
    "deepseek-v4": (deepseek_v4, layer(swiglu_limit=1.5)),
    "step-3.5": (step3p5, layer(gemm1_clamp_limit=1.5)),
    "gpt-oss": (gpt_oss, layer(gemm1_alpha=1.702, gemm1_clamp_limit=1.5)),
    "gpt-oss-side-by-side": (gpt_oss, layer(gemm1_alpha=1.702, gemm1_clamp_limit=1.5, gate_up_interleaved=False)),
    "kimi-k3": (kimi_k3, layer("situ", gemm1_alpha=4.0, gemm1_clamp_limit=25.0)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("formula", "moe"), FORMULAS.values(), ids=FORMULAS)
def test_an_activation_is_its_formula_rounded_once(formula, moe, dtype: torch.dtype):
    gate, up = (torch.randn(7, 12, generator=torch.Generator().manual_seed(seed)) * 3 for seed in (1, 2))
    gate, up = gate.to(dtype), up.to(dtype)
    config = moe.moe_runner_config
    alternate = config.gemm1_alpha is not None and config.activation == "silu" and config.gate_up_interleaved
    gate_up = torch.stack([gate, up], dim=-1).flatten(1) if alternate else torch.cat([gate, up], dim=-1)
    expected = torch.tensor(
        [[formula(*pair) for pair in zip(*row, strict=True)] for row in zip(gate.tolist(), up.tolist(), strict=True)],
        dtype=torch.float64,
    )
    found = activation_of(moe)(gate_up)
    assert found.dtype == dtype
    # One rounding to bfloat16; in float32 exp(x) is off by |x| last bits, and |x| is below 32.
    torch.testing.assert_close(found.double(), expected, rtol=2.0**-8 if dtype == torch.bfloat16 else 2.0**-18, atol=0)


@pytest.mark.parametrize(
    "moe",
    [layer("relu2"), layer("gelu", swiglu_limit=1.0), layer(is_gated=False), layer(gemm1_alpha=1.7)],
    ids=["unknown", "limited-gelu", "without-gate", "alpha-without-limit"],
)
def test_an_activation_that_is_not_known_is_refused(moe):
    with pytest.raises(Unsupported, match=f"the activation {moe.moe_runner_config.activation!r}"):
        activation_of(moe)
