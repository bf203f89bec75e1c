"""The torch forms compute what SGLang's kernels are documented to compute."""

import argparse

import pytest
import torch

from sglang_ascend_moe.serving.host import host_models

ROWS, HIDDEN = 5, 32


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_shared_expert_is_weighted_by_the_sigmoid_of_its_gate_and_rounded_once(dtype: torch.dtype):
    x, shared, routed = (random(ROWS, HIDDEN, dtype=dtype, seed=seed) for seed in range(3))
    gate = random(HIDDEN, dtype=dtype, seed=3)
    expected = routed.double() + torch.sigmoid((x.double() * gate.double()).sum(1, keepdim=True)) * shared.double()
    host_models.add_gated_shared_expert(x, gate, shared, routed)
    torch.testing.assert_close(routed, expected.to(dtype), rtol=2**-8 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_queries_and_keys_are_normalised_over_the_parts_of_all_ranks(ranks: int):
    queries, keys = random(ROWS, 64, seed=1), random(ROWS, HIDDEN, seed=2)
    weights = random(64, seed=3), random(HIDDEN, seed=4)
    expected = [
        torch.nn.functional.rms_norm(x, x.shape[1:], w, 1e-5) for x, w in zip((queries, keys), weights, strict=True)
    ]
    parts = list(zip(queries.chunk(ranks, 1), keys.chunk(ranks, 1), strict=True))
    squares = sum(host_models.query_key_squares(*part) for part in parts)
    assert squares.numel() % 4 == 0
    found = [
        host_models.normalise_queries_keys(*part, query_weight, key_weight, squares, ranks, 1e-5)
        for part, query_weight, key_weight in zip(parts, weights[0].chunk(ranks), weights[1].chunk(ranks), strict=True)
    ]
    for side in (0, 1):
        torch.testing.assert_close(torch.cat([part[side] for part in found], dim=1), expected[side])


def test_rotary_embedding_without_scaling_is_the_ordinary_one():
    from sglang.srt.layers.rotary_embedding.factory import get_rope

    settings = (16, 16, 128, 10000, False)
    found = host_models.rope_without_scaling(refuse, *settings, None, torch.float32, 1.0, "cpu")
    positions = torch.arange(4)
    queries, keys = random(4, 32), random(4, 16, seed=1)
    expected = get_rope(*settings, dtype=torch.float32).forward_native(positions, queries.clone(), keys.clone())
    for one, other in zip(found.forward_native(positions, queries, keys), expected, strict=True):
        assert torch.equal(one, other)


def test_scaled_rotary_embedding_is_left_to_sglang():
    settings = (16, 16, 128, 10000, False, {"rope_type": "deepseek_yarn"}, torch.float32, 1.0, "cpu")
    assert host_models.rope_without_scaling(lambda *given: given, *settings) == settings


@pytest.mark.parametrize("backend", ["torch_native", "unheard_of"])
def test_a_backend_without_a_handler_attends_over_compressed_keys(backend: str):
    from sglang.srt.models.deepseek_common.attention_backend_handler import AttentionBackendRegistry
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod

    handler = host_models.latent_attention_handler(refuse, AttentionBackendRegistry, backend)
    assert handler(argparse.Namespace(), argparse.Namespace()) is AttnForwardMethod.MLA


def test_a_backend_with_a_handler_keeps_it():
    from sglang.srt.models.deepseek_common import attention_backend_handler

    registry = attention_backend_handler.AttentionBackendRegistry
    handler = host_models.latent_attention_handler(refuse, registry, "triton")
    assert handler is attention_backend_handler.handle_attention_triton


def refuse(*_: object) -> None:
    raise AssertionError("SGLang's own function was called")
