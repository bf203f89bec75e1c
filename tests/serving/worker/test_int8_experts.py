"""Experts on the host with int8 weights: against the same on an NPU, and against what their numbers stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker import host_experts, int8_experts, layer
from tests.serving.npu.dequantised import layer_output
from tests.serving.npu.layers import EXPERTS, HIDDEN, TOKENS, host_layer, never, npu_layer, serve, tokens_of
from tests.serving.quantised_models import BITS, by_channel


def int8_layer(kind: str) -> Any:
    """The layer of `host_layer` in a format, with scales as an NPU has them: of 8 bits in bfloat16."""
    moe = host_layer()
    for prefix in ("w13", "w2"):
        numbers, scales = by_channel(getattr(moe, f"{prefix}_weight").data, BITS[kind])
        scales = scales.bfloat16().float() if BITS[kind] == 8 else scales
        setattr(moe, f"{prefix}_weight", torch.nn.Parameter(numbers, requires_grad=False))
        setattr(moe, f"{prefix}_weight_scale", torch.nn.Parameter(scales, requires_grad=False))
    return moe


@pytest.fixture
def output(group, monkeypatch):
    """What our layer gives for a batch, on the host or on an NPU; `places` says where each expert is."""

    def compute(
        moe: Any,
        x: torch.Tensor,
        routed: Any,
        *,
        quant: str = "none",
        schedule: str = "decode",
        rounds: int = 1,
        on_npu: bool = False,
        places: torch.Tensor | None = None,
    ) -> torch.Tensor:
        settings = {"distinct_topk": True, "quant": None if quant == "none" else quant, **layer.shape_of(moe)._asdict()}
        window = Exchange.memory(ranks=1, max_tokens=-(-TOKENS // rounds), **settings).total
        with Exchange.create(group, max_tokens=TOKENS, window_bytes=window, **settings) as exchange:
            serve(monkeypatch, moe, exchange, Options(schedule=schedule, quant=quant), on_npu=on_npu)
            if places is not None:
                routed.topk_ids = places[routed.topk_ids]
            return layer.forward(never, moe, x, routed)

    return compute


def special_rows(dtype: torch.dtype) -> torch.Tensor:
    rows = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    rows *= torch.logspace(-6, 4, TOKENS)[:, None]
    rows[0], rows[1, 3], rows[2, 5], rows[3, 7] = 0, torch.inf, -torch.inf, torch.nan
    rows[4], rows[5] = 1e-38, 2.0**-121
    # Halves of a step, which are rounded to even.
    rows[6] = torch.arange(HIDDEN) - 31.5
    rows[6, 0] = 127
    return rows.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_are_quantised_as_dispatch_does_it(group, dtype):
    x = special_rows(dtype)
    ids = torch.zeros(TOKENS, 1, dtype=torch.int64)
    settings = {"num_experts": 1, "topk": 1, "hidden": HIDDEN, "max_tokens": TOKENS}
    with Exchange.create(group, dtype=dtype, quant="int8", **settings) as one:
        sent = one.dispatch(x, ids, torch.ones(TOKENS, 1))
        found = int8_experts.quantised(x)
        assert torch.equal(found.numbers, sent.rows[:TOKENS])
        torch.testing.assert_close(found.scales, sent.scales[:TOKENS], rtol=0, atol=0, equal_nan=True)
        one.combine(sent.out, sent)


@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize(("schedule", "rounds"), [("decode", 1), ("prefill", 3)])
def test_experts_have_the_bits_of_an_npu(output, schedule, rounds, quant):
    """Over stand-ins for its operators. Weights of 4 bits are multiplied by halves there, and added up in fp32."""
    routing = {"schedule": schedule, "rounds": rounds, "quant": quant}
    found = output(int8_layer("W8A8_DYNAMIC"), *tokens_of(0, TOKENS), **routing)
    on_npu = output(npu_layer(weights="W8A8_DYNAMIC"), *tokens_of(0, TOKENS), on_npu=True, **routing)
    assert torch.equal(found, on_npu)
    assert found.abs().sum() > 0


def beyond(found: torch.Tensor, kind: str) -> torch.Tensor:
    """Which numbers are further from those of the dequantised weights than rounding explains, as on an NPU."""
    expected = layer_output(*tokens_of(0, TOKENS), kind)
    return ~((found.double() - expected.values).abs() <= expected.error)


@pytest.mark.parametrize("quant", ["none", "int8"])
@pytest.mark.parametrize("kind", BITS)
def test_sums_are_those_of_the_dequantised_weights(output, kind, quant):
    found = output(int8_layer(kind), *tokens_of(0, TOKENS), quant=quant)
    assert not beyond(found, kind).any()
    expected = layer_output(*tokens_of(0, TOKENS), kind)
    assert (found - expected.values).norm() / expected.values.norm() < 0.02


def _roll(name: str, dim: int, parts: int) -> Callable[[Any], None]:
    def change(moe: Any) -> None:
        parameter = getattr(moe, name)
        parameter.data = parameter.data.roll(parameter.shape[dim] // parts, dims=dim)

    return change


def _swap_nibbles(moe: Any) -> None:
    low = moe.w2_weight.data[:, ::2].clone()
    moe.w2_weight.data[:, ::2] = moe.w2_weight.data[:, 1::2]
    moe.w2_weight.data[:, 1::2] = low


CHANGES = {
    "weights of gate and up exchanged": _roll("w13_weight", 1, 2),
    "weights of other experts": _roll("w13_weight", 0, EXPERTS),
    "scales of other experts": _roll("w2_weight_scale", 0, EXPERTS),
    "scales of other channels": _roll("w2_weight_scale", 1, HIDDEN),
    "nibbles swapped": _swap_nibbles,
}


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_wrong_layout_is_seen(output, change, kind):
    moe = int8_layer(kind)
    change(moe)
    assert beyond(output(moe, *tokens_of(0, TOKENS)), kind).float().mean() > 0.1


@pytest.mark.parametrize("most", [0, 1, 7, TOKENS * 3], ids=str)
def test_a_row_has_the_same_bits_whatever_is_computed_beside_it(output, monkeypatch, most):
    moe = int8_layer("W8A8_DYNAMIC")
    expected = output(moe, *tokens_of(0, TOKENS))
    monkeypatch.setattr(host_experts, "ROWS_TOGETHER", most)
    assert torch.equal(output(moe, *tokens_of(0, TOKENS)), expected)
    x, routed = tokens_of(0, TOKENS)
    routed.topk_ids, routed.topk_weights = routed.topk_ids[5:6], routed.topk_weights[5:6]
    assert torch.equal(output(moe, x[5:6], routed), expected[5:6])


def test_a_token_that_is_not_finite_harms_no_other(output):
    moe, (x, routed) = int8_layer("W8A8_DYNAMIC"), tokens_of(0, TOKENS)
    expected = output(moe, x, routed)
    x[3, 5] = torch.inf
    found = output(moe, x, routed)
    assert found[3].isnan().all()
    others = torch.arange(TOKENS) != 3
    assert torch.equal(found[others], expected[others])


def test_biases_are_added_in_float32(output):
    plain, biased = int8_layer("W8A8_DYNAMIC"), int8_layer("W8A8_DYNAMIC")
    biased.w2_weight_bias = torch.randn(EXPERTS, HIDDEN, generator=torch.Generator().manual_seed(9))
    x, routed = tokens_of(0, TOKENS)
    added = (routed.topk_weights[..., None] * biased.w2_weight_bias[routed.topk_ids]).sum(1)
    found = output(biased, x, routed).float() - output(plain, x, routed).float()
    # Two results and their terms are rounded to bfloat16.
    torch.testing.assert_close(found, added, rtol=0.02, atol=0.05)
    biased.w13_weight_bias = torch.full((EXPERTS, biased.w13_weight.shape[1]), 3.0)
    assert not torch.equal(output(biased, x, routed).float() - output(plain, x, routed).float(), found)


@pytest.mark.parametrize("kind", BITS)
def test_experts_that_sglang_moves_take_their_scales_with_them(output, kind):
    from sglang.srt.eplb.expert_location_updater import create_temp_buffers, update_expert_weights_single_layer
    from sglang.srt.layers.moe.utils import filter_moe_weight_param_global_expert

    moe = int8_layer(kind)
    expected = output(moe, *tokens_of(0, TOKENS))
    parameters = {name: value for name, value in vars(moe).items() if isinstance(value, torch.nn.Parameter)}
    moved = [
        value.data for name, value in parameters.items() if filter_moe_weight_param_global_expert(name, value, EXPERTS)
    ]
    assert len(moved) == len(parameters) == 4
    places = torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(1)).tolist()
    update_expert_weights_single_layer(
        moved, create_temp_buffers(moved), list(range(EXPERTS)), places, EXPERTS, num_gpu_per_node=1, rank=0
    )
    assert not torch.equal(output(moe, *tokens_of(0, TOKENS)), expected)
    elsewhere = output(moe, *tokens_of(0, TOKENS), places=torch.tensor(places).argsort())
    assert torch.equal(elsewhere, expected)
