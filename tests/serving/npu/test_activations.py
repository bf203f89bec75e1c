"""Experts on an NPU with the activations and biases that models have, against their formulas in fp64; over stand-ins
for operators. No NPU has run this."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.schedules.rows import ExpertRows
from sglang_ascend_moe.native import device_session
from sglang_ascend_moe.serving.npu import experts
from sglang_ascend_moe.serving.options import Options
from tests.npu.operators.experts import product_into
from tests.serving.npu.bounded import FP32, SWIGLU, Activation, Bounded, activated, routed_sum
from tests.serving.npu.dequantised import layer_output
from tests.serving.npu.layers import EXPERTS, HIDDEN, TOKENS, host_layer, npu_layer, tokens_of
from tests.serving.quantised_models import BITS

LIMIT, ALPHA = 0.5, 1.702
GPT_OSS = {"gemm1_alpha": ALPHA, "gemm1_clamp_limit": LIMIT}


def alone(gate: Tensor) -> Tensor:
    gate = gate.clamp(max=LIMIT)
    return gate * (ALPHA * gate).sigmoid()


def bounded(value: Tensor, by: float) -> Tensor:
    return by * (value / by).tanh()


class Model(NamedTuple):
    """What a model tells SGLang's MoE layer, and what that means."""

    settings: dict[str, Any]
    activation: Activation


clamped = partial(torch.clamp, min=-LIMIT, max=LIMIT)
MODELS = {
    "deepseek-v4": Model({"swiglu_limit": LIMIT}, Activation(lambda gate: F.silu(gate.clamp(max=LIMIT)), clamped)),
    "step-3.5": Model(
        {"gemm1_clamp_limit": LIMIT}, Activation(lambda gate: F.silu(gate).clamp(max=LIMIT), clamped, roundings=4)
    ),
    "gpt-oss": Model(
        {"activation": "npu_swiglu_oai", **GPT_OSS}, Activation(alone, lambda up: clamped(up) + 1, interleaved=True)
    ),
    "gpt-oss side by side": Model(
        {"gate_up_interleaved": False, **GPT_OSS}, Activation(alone, lambda up: clamped(up) + 1)
    ),
    "gelu": Model(
        {"activation": "gelu"},
        Activation(partial(F.gelu, approximate="tanh"), lambda up: up, roundings=3),
    ),
    "kimi-k3": Model(
        {"activation": "situ", "gemm1_alpha": 1.0, "gemm1_clamp_limit": 0.75},
        Activation(lambda gate: bounded(gate, 1.0) * gate.sigmoid(), lambda up: bounded(up, 0.75)),
    ),
}


@pytest.fixture(autouse=True)
def products_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_session, "torch_streams", lambda: SimpleNamespace(grouped_product=product_into))


def run(moe: Any, x: Tensor, routed: Any) -> Tensor:
    """Sums of what the layer's experts make of rows in a window, as the exchange adds them up; [tokens, hidden]."""
    experts.prepare(moe, Options())
    order = routed.topk_ids.flatten().argsort(stable=True)
    counts = torch.bincount(routed.topk_ids.flatten(), minlength=EXPERTS)
    # Places beyond the counts hold what nobody must read.
    rows = torch.full((len(order) + 8, HIDDEN), torch.nan, dtype=x.dtype)
    rows[: len(order)] = x[order // routed.topk_ids.shape[1]]
    out = torch.empty_like(rows)
    experts.compute(moe, ExpertRows(rows, None, counts, out, SimpleNamespace(at_most=len(rows))))
    places = order.argsort().view(routed.topk_ids.shape)
    return (out[places].float() * routed.topk_weights[..., None]).sum(1).to(x.dtype)


def layer_of(moe: Any, x: Tensor, routed: Any, activation: Activation) -> Bounded:
    """What the formulas make of the weights of `moe` in fp64."""

    plain = host_layer()

    def product(rows: Bounded, weight: Tensor, bias: Tensor | None) -> Bounded:
        added = torch.zeros(()).double() if bias is None else bias.double()
        magnitude = (rows.values.abs() + rows.error) @ weight.abs().T + added.abs()
        exact = rows.values @ weight.T + added
        return Bounded(exact, rows.error @ weight.abs().T + FP32 * magnitude).rounded()

    def expert(rows: Tensor, index: int) -> Bounded:
        first, second = (getattr(plain, f"{prefix}_weight").data[index].double() for prefix in ("w13", "w2"))
        biases = [getattr(moe, f"{prefix}_weight_bias", None) for prefix in ("w13", "w2")]
        of_first, of_second = (bias if bias is None else bias[index] for bias in biases)
        both = product(Bounded(rows.double(), torch.zeros(rows.shape).double()), first, of_first)
        return product(activated(both, activation), second, of_second)

    return routed_sum(x, routed, EXPERTS, expert)


def beyond(found: Tensor, expected: Bounded) -> float:
    """The share of numbers that rounding does not explain."""
    return ((found.double() - expected.values).abs() > expected.error).float().mean().item()


@pytest.mark.parametrize("biases", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_sums_are_those_of_the_formula(model, biases):
    moe, (x, routed) = npu_layer(biases=biases, **model.settings), tokens_of(0, TOKENS)
    found = run(moe, x, routed)
    assert beyond(found, layer_of(moe, x, routed, model.activation)) == 0
    # Without limits, with those of another model, and without biases they are others.
    other = MODELS["step-3.5" if model is MODELS["deepseek-v4"] else "deepseek-v4"].activation
    assert beyond(found, layer_of(moe, x, routed, SWIGLU)) > 0.1
    assert beyond(found, layer_of(moe, x, routed, other)) > 0.1
    if biases:
        assert beyond(found, layer_of(npu_layer(), x, routed, model.activation)) > 0.1


@pytest.mark.parametrize("weights", BITS)
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_quantised_experts_have_the_activation_of_their_model(model, weights):
    x, routed = tokens_of(0, TOKENS)
    found = run(npu_layer(weights=weights, **model.settings), x, routed)
    assert beyond(found, layer_output(x, routed, weights, model.activation)) == 0
    assert beyond(found, layer_output(x, routed, weights)) > 0.1


UNKNOWN = {
    "relu2": {"activation": "relu2"},
    "limited gelu": {"activation": "gelu", "swiglu_limit": LIMIT},
    "alpha without a limit": {"gemm1_alpha": ALPHA},
    "two limits": {"gemm1_clamp_limit": LIMIT, "swiglu_limit": LIMIT},
    "no gate": {"is_gated": False},
}


@pytest.mark.parametrize("settings", UNKNOWN.values(), ids=UNKNOWN)
def test_other_activations_are_refused(settings):
    moe = npu_layer()
    for name, value in settings.items():
        setattr(moe.moe_runner_config, name, value)
    with pytest.raises(Unsupported, match=rf"MoE layer 0 has the activation '{moe.moe_runner_config.activation}' with"):
        experts.prepare(moe, Options())


@pytest.mark.parametrize(
    "made", [{"weights": "W8A8_DYNAMIC"}, {"weights": "W4A8_DYNAMIC"}, {"dtype": torch.float16}], ids=str
)
def test_biases_that_a_product_does_not_take_are_refused(made):
    with pytest.raises(Unsupported, match="MoE layer 0 has biases: on an NPU"):
        experts.prepare(npu_layer(biases=True, **made), Options())
