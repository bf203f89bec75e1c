"""Routing, experts and quantised products of the emulated NPU against plain formulas."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.npu.operators.modules import install_operators
from tests.npu.operators.refusals import NotEmulated, WrongArguments

TOKENS = [0, 1, 7]
EXPERTS, TOPK, HIDDEN = 8, 3, 32
BFLOAT16 = torch.bfloat16


@pytest.fixture(scope="module", autouse=True)
def operators():
    install_operators()


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = BFLOAT16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-127, 128, shape, generator=torch.Generator().manual_seed(seed)).to(torch.int8)


@pytest.mark.parametrize("tokens", TOKENS)
def test_softmax_gating(tokens):
    logits = numbers(tokens, EXPERTS, dtype=torch.float32)
    weights, ids, rows = torch.ops.npu.npu_moe_gating_top_k_softmax(logits, k=TOPK)
    expected = logits.softmax(-1).topk(TOPK)
    assert torch.equal(weights, expected.values)
    assert torch.equal(ids, expected.indices.int())
    assert rows.tolist() == [[k * tokens + token for k in range(TOPK)] for token in range(tokens)]


def test_the_first_of_two_equal_experts_is_taken():
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0]])
    assert torch.ops.npu.npu_moe_gating_top_k_softmax(logits, k=2)[1].tolist() == [[1, 2]]
    assert torch.ops.npu.npu_moe_gating_top_k(logits, k=2)[1].tolist() == [[1, 2]]


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("grouped", [True, False], ids=["of two groups", "of all"])
def test_biased_sigmoid_gating_is_that_of_deepseek(tokens, grouped):
    """Chosen by score and bias, weighted by score; the groups by their two best."""
    logits, bias = numbers(tokens, EXPERTS, dtype=torch.float32), numbers(EXPERTS, seed=1, dtype=torch.float32)
    groups = {"k_group": 2, "group_count": 4, "group_select_mode": 1} if grouped else {}
    weights, ids, _ = torch.ops.npu.npu_moe_gating_top_k(
        logits, k=TOPK, bias=bias, renorm=True, norm_type=1, routed_scaling_factor=2.5, eps=1e-20, **groups
    )
    for token in range(tokens):
        scores = logits[token].sigmoid()
        allowed = range(EXPERTS)
        if grouped:
            ranks = sorted(range(4), key=lambda group: -(scores + bias).view(4, 2)[group].sum())[:2]
            allowed = [expert for expert in range(EXPERTS) if expert // 2 in ranks]
        chosen = sorted(allowed, key=lambda expert: -(scores + bias)[expert])[:TOPK]
        assert ids[token].tolist() == chosen
        assert torch.allclose(weights[token], scores[chosen] / scores[chosen].sum() * 2.5)


@pytest.mark.parametrize("tokens", TOKENS)
def test_gating_of_deepseek_v4_is_by_the_root_of_softplus(tokens):
    logits, bias = numbers(tokens, EXPERTS, dtype=torch.float32), numbers(EXPERTS, seed=1, dtype=torch.float32)
    weights, ids, _ = torch.ops.custom.npu_moe_gating_top_k(
        x=logits, k=TOPK, bias=bias, input_ids=None, tid2eid=None, routed_scaling_factor=1.5, norm_type=2
    )
    for token in range(tokens):
        scores = (1 + logits[token].double().exp()).log().sqrt()
        chosen = sorted(range(EXPERTS), key=lambda expert: -(scores + bias)[expert])[:TOPK]
        assert ids[token].tolist() == chosen
        assert torch.allclose(weights[token].double(), scores[chosen] / scores[chosen].sum() * 1.5)


def test_softmax_gating_by_the_best_of_each_group():
    logits = torch.tensor([[5.0, 0.0, 4.0, 4.0, 3.0, 3.0]])
    weights, ids, scores = torch.ops.npu.npu_moe_gating_top_k(logits, k=2, k_group=1, group_count=3, out_flag=True)
    assert ids.tolist() == [[0, 1]]
    assert torch.equal(weights, logits.softmax(-1)[:, :2])
    assert torch.equal(scores, logits.softmax(-1))


def routed(tokens: int) -> Tensor:
    return torch.rand(tokens, EXPERTS, generator=torch.Generator().manual_seed(3)).topk(TOPK).indices.int()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("experts", [(0, EXPERTS), (2, 5)], ids=["all", "some"])
@pytest.mark.parametrize("cumulative", [False, True], ids=["counts", "sums"])
def test_rows_lie_by_expert_and_by_token(tokens, experts, cumulative):
    x, ids = numbers(tokens, HIDDEN), routed(tokens)
    rows, places, counts, _ = torch.ops.npu.npu_moe_init_routing_v2(
        x, ids, active_num=tokens * TOPK, expert_num=EXPERTS, expert_tokens_num_type=0 if cumulative else 1,
        expert_tokens_num_flag=True, active_expert_range=list(experts), quant_mode=-1,
    )  # fmt: skip
    order = [
        (expert, token, k)
        for expert in range(*experts)
        for token in range(tokens)
        for k in range(TOPK)
        if ids[token, k] == expert
    ]
    assert torch.equal(rows[: len(order)], x[[token for _, token, _ in order]])
    assert rows[len(order) :].isnan().all()
    expected = torch.full((tokens, TOPK), -1, dtype=torch.int32)
    for place, (_, token, k) in enumerate(order):
        expected[token, k] = place
    assert torch.equal(places, expected.flatten())
    each = [sum(own == expert for own, _, _ in order) for expert in range(*experts)]
    assert counts.tolist() == (torch.tensor(each).cumsum(0).tolist() if cumulative else each)


@pytest.mark.parametrize("tokens", TOKENS)
def test_rows_are_quantised_on_their_way(tokens):
    x, ids = numbers(tokens, HIDDEN), routed(tokens)
    given = {
        "active_num": tokens * TOPK, "expert_num": EXPERTS, "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": True, "active_expert_range": [0, EXPERTS],
    }  # fmt: skip
    rows, *_ = torch.ops.npu.npu_moe_init_routing_v2(x, ids, quant_mode=-1, **given)
    quantised, *_, scales = torch.ops.npu.npu_moe_init_routing_v2(x, ids, quant_mode=1, **given)
    expected, expected_scales = torch.ops.npu.npu_dynamic_quant(rows)
    assert torch.equal(quantised, expected)
    assert torch.equal(scales, expected_scales)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("mode", [2, 0], ids=["token by token", "by k"])
def test_rows_are_summed_with_their_weights(tokens, mode):
    rows, weights = numbers(tokens * TOPK, HIDDEN), numbers(tokens, TOPK, seed=1)
    places = torch.randperm(tokens * TOPK, generator=torch.Generator().manual_seed(2)).int()
    out = torch.ops.npu.npu_moe_finalize_routing(
        rows, skip1=None, skip2=None, bias=None, scales=weights, expanded_src_to_dst_row=places,
        export_for_source_row=routed(tokens), drop_pad_mode=mode,
    )  # fmt: skip
    own = places.view(tokens, TOPK) if mode == 2 else places.view(TOPK, tokens).T
    total = torch.zeros(tokens, HIDDEN)
    for k in range(TOPK):
        total += rows[own[:, k].long()].float() * weights[:, k, None].float()
    assert torch.equal(out, total.to(BFLOAT16))


def test_rows_that_have_no_place_add_nothing():
    rows, weights = numbers(1, HIDDEN), torch.ones(1, TOPK, dtype=BFLOAT16)
    out = torch.ops.npu.npu_moe_finalize_routing(
        rows, None, None, None, weights, torch.tensor([-1, 0, -1]).int(), None, drop_pad_mode=2
    )
    assert torch.equal(out, rows)


COUNTS = [3, 0, 5, 0, 7, 1, 4, 0]


@pytest.mark.parametrize("cumulative", [False, True], ids=["counts", "sums"])
@pytest.mark.parametrize("quantised", [False, True], ids=["bf16", "int8"])
def test_grouped_products(quantised, cumulative):
    total, beyond = sum(COUNTS), 3
    counts = torch.tensor(COUNTS)
    given = {
        "split_item": 2, "group_type": 0, "group_list": counts.cumsum(0) if cumulative else counts,
        "group_list_type": 0 if cumulative else 1, "output_dtype": BFLOAT16,
    }  # fmt: skip
    if quantised:
        rows, weights = whole(total + beyond, HIDDEN), whole(EXPERTS, HIDDEN, 24, seed=1)
        channels, tokens = (
            numbers(EXPERTS, 24, seed=2).abs(),
            numbers(total + beyond, seed=3, dtype=torch.float32).abs(),
        )
        (out,) = torch.ops.npu.npu_grouped_matmul(
            x=[rows], weight=[weights], scale=[channels], per_token_scale=[tokens], **given
        )
    else:
        rows, weights = numbers(total + beyond, HIDDEN), numbers(EXPERTS, 24, HIDDEN, seed=1).transpose(1, 2)
        (out,) = torch.ops.npu.npu_grouped_matmul(x=[rows], weight=[weights], **given)
    assert out[total:].isnan().all()
    experts = torch.repeat_interleave(torch.arange(EXPERTS), counts)
    exact = torch.einsum("rh,rhn->rn", rows[:total].double(), weights[experts].double())
    if quantised:
        exact = exact * channels[experts].double() * tokens[:total, None].double()
    assert torch.allclose(out[:total].double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(("dtype", "of_bias"), [(torch.bfloat16, torch.float32), (torch.float16, torch.float16)])
def test_a_bias_is_added_before_a_product_is_rounded(dtype, of_bias):
    counts, total = torch.tensor(COUNTS), sum(COUNTS)
    rows, weights = numbers(total, HIDDEN).to(dtype), numbers(EXPERTS, HIDDEN, 24, seed=1).to(dtype)
    bias = numbers(EXPERTS, 24, seed=2).to(of_bias)
    (out,) = torch.ops.npu.npu_grouped_matmul(
        [rows], [weights], bias=[bias], split_item=2, group_type=0, group_list=counts, group_list_type=1
    )
    experts = torch.repeat_interleave(torch.arange(EXPERTS), counts)
    exact = torch.einsum("rh,rhn->rn", rows.double(), weights[experts].double()) + bias[experts].double()
    assert torch.allclose(out.double(), exact, rtol=torch.finfo(dtype).eps / 2, atol=1e-5)


def packed(weights: Tensor) -> Tensor:
    """int8 [..., to], -8 to 7, as an NPU takes them: eight numbers in an int32, the first in its lowest bits."""
    places = 16 ** torch.arange(8)
    found = ((weights.to(torch.int64) & 15).unflatten(-1, (-1, 8)) * places).sum(-1)
    return torch.where(found < 2**31, found, found - 2**32).to(torch.int32)


class FourBits(NamedTuple):
    """Weights [experts, from, to] and scales [experts, groups, to], and what the operator takes of them."""

    rows: Tensor
    tokens: Tensor
    weights: Tensor
    scales: Tensor
    given: dict[str, Any]

    def exact(self) -> Tensor:
        each = self.weights.double() * self.scales.double().repeat_interleave(
            self.weights.shape[1] // self.scales.shape[1], 1
        )
        experts = torch.repeat_interleave(torch.arange(EXPERTS), torch.tensor(COUNTS))
        rows = self.rows[: len(experts)].double() * self.tokens[: len(experts), None].double()
        return torch.einsum("rh,rhn->rn", rows, each[experts])


def four_bits(groups: int, to: int = 24) -> FourBits:
    total, hidden = sum(COUNTS) + 3, 256 * groups
    weights = torch.randint(-8, 8, (EXPERTS, hidden, to), generator=torch.Generator().manual_seed(1)).to(torch.int8)
    scales = numbers(EXPERTS, groups, to, seed=2, dtype=torch.float32).abs()
    tokens = numbers(total, seed=3, dtype=torch.float32).abs()
    rows = whole(total, hidden)
    scaled = weights.float() * scales.repeat_interleave(hidden // groups, 1)
    given = {
        "x": [rows], "weight": [packed(weights)], "scale": [scales.view(torch.int32).to(torch.int64)],
        "per_token_scale": [tokens], "bias": [8 * scaled.sum(1)], "split_item": 2, "group_type": 0,
        "group_list": torch.tensor(COUNTS), "group_list_type": 1, "output_dtype": BFLOAT16,
    }  # fmt: skip
    return FourBits(rows, tokens, weights, scales, given)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("groups", [1, 2], ids=["by channel", "by group"])
def test_grouped_products_with_weights_of_four_bits(groups):
    """Within the rounding to bfloat16, half of 2^-8 of each number, and of fp32 in between."""
    case = four_bits(groups)
    (out,) = torch.ops.npu.npu_grouped_matmul(**case.given)
    exact, total = case.exact(), sum(COUNTS)
    assert out.shape == (len(case.rows), 24)
    assert out[total:].isnan().all()
    assert torch.allclose(out[:total].double(), exact, rtol=2**-8, atol=float(exact.abs().max()) * 2**-16)


def _swapped(values: Tensor) -> Tensor:
    """The two nibbles of every byte."""
    in_bytes = values.view(torch.uint8)
    return ((in_bytes << 4) | (in_bytes >> 4)).view(torch.int32)


DAMAGED = {
    "nibbles swapped": ("weight", _swapped),
    "weights of another expert": ("weight", lambda weights: weights.roll(1, 0)),
    "scales of another channel": ("scale", lambda scales: scales.roll(1, 2)),
    "groups exchanged": ("scale", lambda scales: scales.flip(1)),
    "groups transposed": ("scale", lambda scales: scales.transpose(1, 2).reshape(scales.shape)),
    "no eights": ("bias", torch.zeros_like),
    "the eights of another channel": ("bias", lambda bias: bias.roll(1, 1)),
}


@pytest.mark.parametrize(("name", "damage"), DAMAGED.values(), ids=DAMAGED)
def test_four_bits_out_of_order_are_far_off(name, damage):
    case = four_bits(groups=2)
    (out,) = torch.ops.npu.npu_grouped_matmul(**case.given | {name: [damage(case.given[name][0])]})
    assert off(out[: sum(COUNTS)], case.exact()) > 0.05


OF_FOUR_BITS = {
    "rows of bf16": ({"x": [numbers(31, 512)], "scale": None, "per_token_scale": None}, NotEmulated, "bfloat16 and"),
    "running sums": ({"group_list_type": 0}, WrongArguments, "take counts"),
    "scales in fp32": ({"scale": [numbers(EXPERTS, 2, 24)]}, WrongArguments, "torch.bfloat16 scales"),
    "other groups": ({"scale": [torch.ones(EXPERTS, 4, 24).long()]}, WrongArguments, "4 groups of 512 weights"),
    "no bias": ({"bias": None}, WrongArguments, "need a bias"),
    "a bias in parts": ({"bias": [torch.ones(EXPERTS, 16, 24)]}, WrongArguments, "need a bias"),
}


@pytest.mark.parametrize(("change", "kind", "words"), OF_FOUR_BITS.values(), ids=OF_FOUR_BITS)
def test_what_weights_of_four_bits_do_not_take_is_named(change, kind, words):
    with pytest.raises(kind, match=words):
        torch.ops.npu.npu_grouped_matmul(**four_bits(groups=2).given | change)


def test_no_rows_at_all():
    none = torch.zeros(EXPERTS, dtype=torch.int64)
    (out,) = torch.ops.npu.npu_grouped_matmul(
        [numbers(0, HIDDEN)], [numbers(EXPERTS, HIDDEN, 24)], split_item=2, group_type=0, group_list=none,
        group_list_type=1, output_dtype=BFLOAT16,
    )  # fmt: skip
    assert out.shape == (0, 24)


@pytest.mark.parametrize("tokens", TOKENS)
def test_activations(tokens):
    rows = numbers(tokens, 2 * HIDDEN)
    gate, up = rows.double().chunk(2, dim=-1)
    exact = F.silu(gate) * up
    out = torch.ops.npu.npu_swiglu(rows)
    assert torch.allclose(out.double(), exact, rtol=2**-8, atol=1e-6)
    quantised, scales = torch.ops.npu.npu_dequant_swiglu_quant(rows, quant_mode=1, activate_left=True)
    assert torch.allclose(scales.double(), exact.abs().amax(-1) / 127)
    assert (quantised.double() * scales[:, None].double() - exact).abs().le(scales[:, None] * 0.501).all()
    other, _ = torch.ops.npu.npu_dequant_swiglu_quant(torch.cat([up, gate], -1).to(BFLOAT16), quant_mode=1)
    assert torch.equal(other, quantised)


@pytest.mark.parametrize("quantised", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("counted", [0, 5])
def test_the_activation_of_sgl_kernel_npu_is_of_counted_rows(quantised, counted):
    rows = numbers(8, 2 * HIDDEN)
    counts = torch.tensor([counted - counted // 2, counted // 2])
    out, scales = torch.ops.sgl_kernel_npu.swiglu_quant(rows, counts, 1, need_quant=quantised)
    gate, up = rows[:counted].double().chunk(2, dim=-1)
    exact = F.silu(gate) * up
    if quantised:
        assert scales[counted:].isnan().all()
        assert (out[:counted].double() * scales[:counted, None] - exact).abs().le(scales[:counted, None] * 0.501).all()
    else:
        assert out[counted:].isnan().all()
        assert torch.allclose(out[:counted].double(), exact, rtol=2**-8, atol=1e-6)


def clipped(gate: Tensor, up: Tensor, alpha: float, bias: float) -> Tensor:
    gate = gate.double().clamp(max=0.5)
    return gate * (alpha * gate).sigmoid() * (up.double().clamp(-0.5, 0.5) + bias)


@pytest.mark.parametrize(("alpha", "bias"), [(1.0, 0.0), (1.702, 1.0)], ids=["deepseek-v4", "gpt-oss"])
@pytest.mark.parametrize("interleaved", [False, True], ids=["side by side", "in turns"])
@pytest.mark.parametrize("counted", [0, 5, None])
def test_the_clipped_activation(counted, interleaved, alpha, bias):
    rows = numbers(8, 2 * HIDDEN)
    counts = None if counted is None else torch.tensor([counted - counted // 2, counted // 2])
    out = torch.ops.npu.npu_clipped_swiglu(
        rows, group_index=counts, alpha=alpha, limit=0.5, bias=bias, interleaved=interleaved
    )
    total = 8 if counted is None else counted
    halves = (rows[:, ::2], rows[:, 1::2]) if interleaved else rows.chunk(2, dim=1)
    assert out[total:].isnan().all()
    assert torch.allclose(out[:total].double(), clipped(*halves, alpha, bias)[:total], rtol=2**-8, atol=1e-7)
    if interleaved and bias:
        of_all = torch.ops.sgl_kernel_npu.swiglu_oai_triton(rows, 2 * HIDDEN, alpha, 0.5)
        assert torch.equal(of_all[:total], out[:total])


@pytest.mark.parametrize("quantised", [False, True], ids=["bf16", "int8"])
@pytest.mark.parametrize("linear_beta", [25.0, None])
def test_the_bounded_activation_of_kimi_k3(linear_beta, quantised):
    rows, counted = numbers(8, 2 * HIDDEN), 5
    out, scales = torch.ops.sgl_kernel_npu.situ(
        rows, torch.tensor([2, 3]), 1, need_quant=quantised, beta=4.0, linear_beta=linear_beta
    )
    gate, up = rows[:counted].double().chunk(2, dim=1)
    up = up if linear_beta is None else linear_beta * (up / linear_beta).tanh()
    exact = 4 * (gate / 4).tanh() * gate.sigmoid() * up
    if quantised:
        assert (out[:counted].double() * scales[:counted, None] - exact).abs().le(scales[:counted, None] * 0.501).all()
    else:
        assert out[counted:].isnan().all()
        assert torch.allclose(out[:counted].double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("tokens", TOKENS)
def test_dynamic_quantisation(tokens):
    rows = numbers(tokens, HIDDEN)
    if tokens > 1:
        rows[1] = 0
    quantised, scales = torch.ops.npu.npu_dynamic_quant(rows, dst_type=torch.int8)
    assert torch.equal(scales, rows.float().abs().amax(-1) / 127)
    assert (quantised.float() * scales[:, None] - rows.float()).abs().le(scales[:, None] * 0.501).all()
    assert tokens < 2 or not quantised[1].any()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_quantised_products(tokens, with_bias):
    rows, weights, channels = whole(tokens, HIDDEN), whole(HIDDEN, 24, seed=1), numbers(24, seed=2).abs()
    scales, bias = numbers(tokens, seed=3, dtype=torch.float32).abs(), numbers(24, seed=4) if with_bias else None
    out = torch.ops.npu.npu_quant_matmul(
        rows, weights, channels, pertoken_scale=scales, bias=bias, output_dtype=BFLOAT16
    )
    exact = rows.double() @ weights.double() * channels.double() * scales[:, None].double()
    exact = exact if bias is None else exact + bias.double()
    assert torch.allclose(out.double(), exact, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("tokens", TOKENS)
def test_products_for_each_head(tokens):
    rows, weights = numbers(tokens, 4, HIDDEN), numbers(4, HIDDEN, 24, seed=1)
    out = torch.ops.npu.npu_transpose_batchmatmul(rows, weights, perm_x1=(1, 0, 2), perm_x2=(0, 1, 2), perm_y=(1, 0, 2))
    exact = torch.einsum("thi,hio->tho", rows.double(), weights.double())
    assert torch.allclose(out.double(), exact, rtol=2**-7, atol=2**-6)
    written = torch.full_like(out, torch.nan)
    torch.ops.npu.batch_matmul_transpose(rows, weights, written)
    assert torch.equal(written, out)


def test_a_cast_of_the_layout_changes_no_number():
    weights = numbers(HIDDEN, 24)
    assert torch.equal(torch.ops.npu.npu_format_cast(weights, 29), weights)
    with pytest.raises(NotEmulated, match="npu_format_cast with acl_format=4"):
        torch.ops.npu.npu_format_cast(weights, 4)


ROWS, WEIGHTS = numbers(4, HIDDEN), numbers(2, HIDDEN, 24)
GROUPED = {"split_item": 2, "group_type": 0, "group_list": torch.tensor([2, 2]), "group_list_type": 1}
REFUSED = {
    "a bias in bfloat16": ({"bias": [numbers(2, 24)]}, WrongArguments, r"bias \[2, 24\] of torch.bfloat16 for rows of"),
    "a bias of others": ({"bias": [numbers(1, 24, dtype=torch.float32)]}, WrongArguments, r"a bias \[1, 24\] of"),
    "several results": ({"split_item": 0}, NotEmulated, "npu_grouped_matmul with split_item=0"),
    "too many rows": ({"group_list": torch.tensor([2, 3])}, WrongArguments, "5 rows are counted, 4 are there"),
    "another type of counts": ({"group_list": torch.tensor([2, 2]).int()}, WrongArguments, "torch.int32 counts"),
    "weights of others": ({"group_list": torch.tensor([4])}, WrongArguments, "counts of 1 groups, 2 weights"),
    "float16 of scales in bfloat16": (
        {
            "x": [ROWS.to(torch.int8)],
            "weight": [WEIGHTS.to(torch.int8)],
            "scale": [numbers(2, 24)],
            "per_token_scale": [torch.ones(4)],
            "output_dtype": 5,
        },
        WrongArguments,
        "torch.bfloat16 scales of weights of 8 bits, results in float16",
    ),
    "scales of bf16 rows": ({"scale": [ROWS], "per_token_scale": [ROWS]}, NotEmulated, "rows of torch.bfloat16"),
}


@pytest.mark.parametrize(("change", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_there_is_named(change, kind, words):
    with pytest.raises(kind, match=words):
        torch.ops.npu.npu_grouped_matmul(**{"x": [ROWS], "weight": [WEIGHTS], **GROUPED, **change})


def test_an_operator_that_is_not_there_is_named():
    assert not hasattr(torch.ops.npu, "npu_quant_lightning_indexer")
    with pytest.raises(AttributeError, match="the emulated NPU has no operator npu::npu_quant_lightning_indexer"):
        torch.ops.npu.npu_quant_lightning_indexer(ROWS)
