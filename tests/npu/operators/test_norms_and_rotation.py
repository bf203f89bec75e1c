"""Norms and rotary embeddings of the emulated NPU against transformers' and SGLang's forms in fp32."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.models.deepseek_v3.modeling_deepseek_v3 import apply_rotary_pos_emb_interleave
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.npu.operators import modules
from tests.npu.operators.refusals import NotEmulated

EPSILON = 1e-5


@pytest.fixture(scope="module", autouse=True)
def operators():
    modules.install_operators()


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def once_rounded(found: Tensor, exact: Tensor) -> bool:
    """`found` is `exact`, computed in fp64, rounded to its own type once, but for ties that fp32 decides otherwise."""
    expected = exact.to(found.dtype)
    off = (found != expected).float().mean() if found.numel() else torch.tensor(0.0)
    return found.shape == expected.shape and off < 0.01 and torch.allclose(found.double(), exact, rtol=2**-8, atol=1e-6)


def norm(rows: Tensor, weight: Tensor, epsilon: float = EPSILON) -> Tensor:
    return torch.nn.functional.rms_norm(rows.double(), rows.shape[-1:], weight.double(), epsilon)


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_rms_norm(tokens):
    rows, weight = numbers(tokens, 64), numbers(64, seed=1)
    out, reciprocal = torch.ops.npu.npu_rms_norm(rows, weight, EPSILON)
    assert once_rounded(out, norm(rows, weight))
    assert torch.allclose(reciprocal.double(), (rows.double().square().mean(-1, keepdim=True) + EPSILON).rsqrt())
    assert once_rounded(torch.ops.npu.npu_gemma_rms_norm(rows, weight, EPSILON)[0], norm(rows, 1 + weight.double()))


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_add_rms_norm(tokens):
    rows, residual, weight = numbers(tokens, 64), numbers(tokens, 64, seed=2), numbers(64, seed=1)
    out, _, total = torch.ops.npu.npu_add_rms_norm(residual, rows, weight, EPSILON)
    exact = rows.double() + residual.double()
    assert once_rounded(out, norm(exact, weight))
    assert torch.equal(total, exact.to(torch.bfloat16))


def angles(tokens: int, turned: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Cosines and sines [tokens, turned / 2] of any angles."""
    angle = numbers(tokens, turned // 2, seed=seed, dtype=torch.float32) * 3
    return angle.cos(), angle.sin()


def doubled(table: Tensor) -> Tensor:
    return torch.cat([table, table], dim=-1).double()


def turned_by_half(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Heads [tokens, heads, width] by transformers."""
    return apply_rotary_pos_emb(heads.double(), heads.double(), doubled(cos), doubled(sin), unsqueeze_dim=1)[0]


def turned_interleaved(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """By complex numbers."""
    pairs = torch.view_as_complex(heads.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos.double(), sin.double())[:, None]).flatten(-2)


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("mode", ["half", "interleave"])
def test_rotary_mul(tokens, mode):
    heads, (cos, sin) = numbers(tokens, 4, 16), angles(tokens, 16)
    tables = [
        (doubled(t) if mode == "half" else t.repeat_interleave(2, dim=-1))[None, :, None].float() for t in (cos, sin)
    ]
    out = torch.ops.npu.npu_rotary_mul(heads[None], *tables, rotary_mode=mode)[0]
    assert once_rounded(out, (turned_by_half if mode == "half" else turned_interleaved)(heads, cos, sin))


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_interleave_rope_is_that_of_deepseek(tokens):
    heads, (cos, sin) = numbers(tokens, 4, 16), angles(tokens, 16)
    out = torch.ops.npu.npu_interleave_rope(heads[:, :, None], *(doubled(t)[:, None, None].float() for t in (cos, sin)))
    wide = heads.double()[:, :, None]
    expected, _ = apply_rotary_pos_emb_interleave(wide, wide, doubled(cos)[:, None], doubled(sin)[:, None])
    assert once_rounded(out, expected.view(tokens, 4, 1, 16))


@pytest.mark.parametrize("mode", ["half", "interleave"])
@pytest.mark.parametrize("turned", [16, 8], ids=["whole heads", "half of each head"])
def test_mrope_turns_the_beginning_of_each_head(mode, turned):
    positions = torch.tensor([4, 0, 9])
    cos, sin = angles(10, turned)
    query, key = numbers(3, 4 * 16), numbers(3, 2 * 16, seed=5)
    found = torch.ops.npu.npu_mrope(
        positions, query, key, torch.cat([cos, sin], dim=-1), 16, mrope_section=[0, 0, 0], rotary_mode=mode
    )
    turn = turned_by_half if mode == "half" else turned_interleaved
    for rows, out in zip((query, key), found, strict=True):
        heads = rows.unflatten(1, (-1, 16))
        first = turn(heads[..., :turned], cos[positions], sin[positions])
        assert once_rounded(out, torch.cat([first, heads[..., turned:].double()], dim=-1).flatten(1))


def test_sections_of_mrope_are_not_there():
    rows = numbers(1, 16)
    with pytest.raises(NotEmulated, match=r"npu_mrope with mrope_section=\[8, 4, 4\]"):
        torch.ops.npu.npu_mrope(torch.zeros(1).long(), rows, rows, numbers(4, 16), 16, mrope_section=[8, 4, 4])


@pytest.mark.parametrize("tokens", [0, 1, 6])
def test_latent_keys_are_normalised_turned_and_written_into_their_pages(tokens):
    latent, turned = 32, 8
    rows, weight, (cos, sin) = numbers(tokens, 1, 1, latent + turned), numbers(latent, seed=1), angles(tokens, turned)
    slots = torch.tensor([3, 4, -1, 11, 0, 7])[:tokens]
    keys, values = torch.zeros(3, 4, 1, turned).bfloat16(), torch.zeros(3, 4, 1, latent).bfloat16()
    tables = [doubled(t)[:, None, None].bfloat16() for t in (cos, sin)]
    k_cache, ckv_cache, k, ckv = torch.ops.npu.npu_kv_rmsnorm_rope_cache(
        rows, weight, *tables, slots, keys, values, epsilon=EPSILON, cache_mode="PA_BNSD", is_output_kv=True,
    )  # fmt: skip
    assert (k_cache.data_ptr(), ckv_cache.data_ptr()) == (keys.data_ptr(), values.data_ptr())
    assert once_rounded(ckv, norm(rows[..., :latent], weight))
    assert torch.equal(k, torch.ops.npu.npu_interleave_rope(rows[..., latent:], *tables))
    for cache, made in ((keys, k), (values, ckv)):
        expected = torch.zeros_like(cache).view(12, -1)
        for slot, row in zip(slots.tolist(), made.flatten(0, 2), strict=True):
            if slot >= 0:
                expected[slot] = row
        assert torch.equal(cache.view(12, -1), expected)


class Heads:
    """A projection of queries, keys and values with 4 and 2 heads, as a model hands it to sgl-kernel-npu."""

    def __init__(self, tokens: int, turned: int) -> None:
        self.rows = numbers(tokens, (4 + 2 + 2) * 16)
        self.cos, self.sin = angles(tokens, turned)
        self.turned = turned
        self.weights = numbers(16, seed=7), numbers(16, seed=8)
        self.query, self.key, self.value = self.rows.split([64, 32, 32], dim=-1)

    def turn(self, heads: Tensor) -> Tensor:
        first = turned_by_half(heads[..., : self.turned], self.cos, self.sin)
        return torch.cat([first, heads[..., self.turned :].double()], dim=-1).flatten(1)


@pytest.mark.parametrize("tokens", [0, 1, 5])
@pytest.mark.parametrize("turned", [16, 8], ids=["whole heads", "half of each head"])
@pytest.mark.parametrize("with_norm", [True, False], ids=["normalised", "as they are"])
def test_split_qkv_rmsnorm_rope(tokens, turned, with_norm):
    heads = Heads(tokens, turned)
    tables = [torch.cat([t, t], dim=-1)[:, None, None] for t in (heads.sin, heads.cos)]
    norms = {"eps": EPSILON, "q_weight": heads.weights[0], "k_weight": heads.weights[1]} if with_norm else {}
    found = torch.ops.sgl_kernel_npu.split_qkv_rmsnorm_rope(heads.rows, *tables, 64, 32, 16, **norms)
    for out, rows, weight in zip(found, (heads.query, heads.key), heads.weights, strict=False):
        own = rows.unflatten(1, (-1, 16)).double()
        assert once_rounded(out, heads.turn(norm(own, weight) if with_norm else own))
    assert torch.equal(found[2], heads.value)


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_norms_over_the_heads_of_one_rank(tokens):
    heads = Heads(tokens, 8)
    weights = numbers(64, seed=7), numbers(32, seed=8)
    # As MiniMax-M2 cuts them out of one table.
    cos, sin = torch.cat([heads.cos, heads.sin], dim=-1).chunk(2, dim=-1)
    found = modules.split_qkv_tp_rmsnorm_rope(
        input=heads.rows, cos=cos, sin=sin, q_hidden_size=64, kv_hidden_size=32, head_dim=16, eps=EPSILON,
        q_weight=weights[0], k_weight=weights[1], rotary_dim=8, tp_world=1, tp_group=None,
    )  # fmt: skip
    for out, rows, weight in zip(found, (heads.query, heads.key), weights, strict=False):
        normal = norm(rows, weight).to(torch.bfloat16).unflatten(1, (-1, 16))
        exact = heads.turn(normal)
        assert torch.allclose(out.double(), exact, rtol=2**-6, atol=2**-7)
    assert torch.equal(found[2], heads.value)


def test_norms_over_the_heads_of_two_ranks_are_those_of_one(monkeypatch):
    """Each rank has half of the heads; the mean squares that the group sums are those of both."""
    whole = numbers(3, 128)
    halves = [torch.cat([whole[:, 32 * rank : 32 * rank + 32], whole[:, 64 + 16 * rank : 80 + 16 * rank],
                         whole[:, 96 + 16 * rank : 112 + 16 * rank]], dim=-1) for rank in (0, 1)]  # fmt: skip
    kernels = torch.ops.sgl_kernel_npu
    squares = sum(kernels.split_qkv_mean_squares(half, 32, 16) for half in halves)
    monkeypatch.setattr(modules.dist, "all_reduce", lambda tensor, **_: tensor.copy_(squares))
    (cos, sin), weights = angles(3, 16), (numbers(64, seed=7), numbers(32, seed=8))

    def run(rows: Tensor, part: int, ranks: int) -> tuple[Tensor, ...]:
        sizes = {"q_hidden_size": 64 // ranks, "kv_hidden_size": 32 // ranks}
        own = [weight.chunk(ranks)[part] for weight in weights]
        return modules.split_qkv_tp_rmsnorm_rope(
            rows, cos, sin, head_dim=16, eps=EPSILON, q_weight=own[0], k_weight=own[1], rotary_dim=16, tp_world=ranks,
            tp_group=None, **sizes,
        )  # fmt: skip

    together = [
        torch.cat(parts, dim=-1)
        for parts in zip(*(run(half, rank, 2) for rank, half in enumerate(halves)), strict=True)
    ]
    for split, one in zip(together, run(whole, 0, 1), strict=True):
        assert torch.allclose(split.float(), one.float(), rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("neox", [True, False], ids=["half apart", "interleaved"])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_fused_rope_qk_mqa(neox, tokens):
    query, key, (cos, sin) = numbers(tokens, 4, 16), numbers(tokens, 1, 16, seed=5), angles(tokens, 8)
    found = torch.ops.sgl_kernel_npu.fused_rope_qk_mqa(query, key, torch.cat([cos, sin], dim=-1), 8, neox)
    turn = turned_by_half if neox else turned_interleaved
    for out, heads in zip(found, (query, key), strict=True):
        expected = torch.cat([turn(heads[..., :8], cos, sin), heads[..., 8:].double()], dim=-1)
        assert once_rounded(out, expected)


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_fused_split_qk_norm(tokens):
    rows, weights = numbers(tokens, 24 + 32 + 8), (numbers(24, seed=1), numbers(32, seed=2))
    layers = [SimpleNamespace(weight=weight) for weight in weights]
    query, latent, position = modules.fused_split_qk_norm(rows, *layers, 24, 32, 8, eps=EPSILON)
    assert once_rounded(query, norm(rows[:, :24], weights[0]))
    assert once_rounded(latent, norm(rows[:, 24:56], weights[1])[:, None])
    assert torch.equal(position, rows[:, None, 56:])


def test_l1_norm_of_weights():
    weights = torch.tensor([[0.25, 0.5], [0.125, 0.125]]).bfloat16()
    out = torch.ops.sgl_kernel_npu.l1_norm(weights)
    assert torch.equal(out, torch.tensor([[1 / 3, 2 / 3], [0.5, 0.5]]))
    assert torch.ops.sgl_kernel_npu.l1_norm(weights[:0]).shape == (0, 2)
