"""Tensors of quantised checkpoints as a host loads them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.host import dequantised_weights
from sglang_ascend_moe.serving.host.dequantised_weights import multiply_out, unpack
from sglang_ascend_moe.serving.host.weight_formats import StoredFormats, formats_of
from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE
from sglang_ascend_moe.serving.launcher.scaled_weights import Block
from tests.serving.quantised_models import (
    BLOCK,
    FP8,
    PLAIN_FILE,
    STATIC,
    WEIGHTS_FILE,
    by_block,
    dequantised,
    pack,
    static_tensors,
    write_compressed,
    write_dequantised,
    write_fp8,
    write_quantised,
)

FOLDER = Path("/models/moe")
LAYER = "model.layers.0.mlp.experts.0.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"), "deepseek_v3")


WRITTEN = {
    "modelslim W8A8": (write_quantised, "W8A8_DYNAMIC", WEIGHTS_FILE),
    "modelslim W4A8": (write_quantised, "W4A8_DYNAMIC", WEIGHTS_FILE),
    "compressed-tensors W8A8": (write_compressed, "W8A8_DYNAMIC", PLAIN_FILE),
    "compressed-tensors W4A8": (write_compressed, "W4A8_DYNAMIC", PLAIN_FILE),
    "fp8": (write_fp8, FP8, PLAIN_FILE),
}


@pytest.mark.parametrize("last_first", [False, True], ids=["as they lie", "backwards"])
@pytest.mark.parametrize(("write", "kind", "file"), WRITTEN.values(), ids=WRITTEN)
def test_each_weight_is_its_numbers_by_its_scales(plain, tmp_path, write, kind: str, file: str, last_first: bool):
    folder = write(plain, tmp_path / "quantised", kind)
    stored = formats_of(folder)
    written = list(load_file(folder / file).items())
    found = dict(multiply_out(written[::-1] if last_first else written, stored, folder))
    expected = load_file(write_dequantised(plain, tmp_path / "dequantised", kind) / PLAIN_FILE)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    others = {FP8} if kind == FP8 else {"W8A8_DYNAMIC", kind}
    assert {stored.kinds.get(name, "FLOAT") for name in expected} == {"FLOAT", *others}


@pytest.mark.parametrize("last_first", [False, True], ids=["as they lie", "backwards"])
@pytest.mark.parametrize(("write", "kind", "file"), list(WRITTEN.values())[:-1], ids=list(WRITTEN)[:-1])
def test_experts_that_are_kept_are_their_numbers_and_scales(plain, tmp_path, write, kind, file, last_first):
    folder = write(plain, tmp_path / "quantised", kind)
    stored = formats_of(folder)
    assert stored.integer_experts
    written = list(load_file(folder / file).items())
    found = dict(multiply_out(written[::-1] if last_first else written, stored, folder, keeps_experts=True))
    expected = load_file(write_dequantised(plain, tmp_path / "dequantised", kind) / PLAIN_FILE)
    scales = {f"{name}_scale" for name in expected if ".experts." in name}
    assert found.keys() == expected.keys() | scales
    for name, tensor in expected.items():
        if ".experts." in name:
            assert (found[name].dtype, found[f"{name}_scale"].dtype) == (torch.int8, torch.float32)
            assert torch.equal(found[name].float() * found[f"{name}_scale"], tensor), name
        else:
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("write", [write_quantised, write_compressed])
def test_experts_are_kept_in_all_layers_or_none(plain, tmp_path, write):
    """As of a checkpoint whose last layer, which drafts, is not quantised."""
    folder = write(plain, tmp_path / "quantised", "W8A8_DYNAMIC")
    kinds = formats_of(folder).kinds
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    if write is write_quantised:
        (folder / MODELSLIM_FILE).write_text(json.dumps({**kinds, name: "FLOAT"}))
    else:
        tensors = load_file(folder / PLAIN_FILE)
        save_file(tensors | {name: tensors[name].bfloat16()}, folder / PLAIN_FILE)
    assert kinds[name] == "W8A8_DYNAMIC"
    assert not formats_of(folder).integer_experts


def test_fp8_is_not_kept(plain, tmp_path):
    assert not formats_of(write_fp8(plain, tmp_path / "quantised")).integer_experts


@pytest.mark.parametrize("shape", [(1, 1), (32, 48), (33, 49), (64, 96), (100, 200)], ids=str)
def test_blocks_at_the_ends_of_a_weight_are_cut(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    numbers, scales = by_block(weight)
    stored = StoredFormats({f"{LAYER}.weight": FP8}, Block(*BLOCK), "config.json")
    parts = [(f"{LAYER}.weight_scale_inv", scales), (f"{LAYER}.weight", numbers)]
    ((_, found),) = multiply_out(parts, stored, FOLDER)
    assert torch.equal(found, dequantised(weight, FP8))
    # E4M3 has three bits after the point; numbers that are small beside the largest of the block have fewer.
    assert ((found - weight).abs() <= torch.maximum(weight.abs() * 2**-4, weight.abs().amax() * 2**-16)).all()


def test_fp8_of_several_experts_at_once_is_named(plain, tmp_path):
    folder = write_fp8(plain, tmp_path / "quantised")
    tensors = load_file(folder / PLAIN_FILE)
    together = "model.layers.1.mlp.experts.gate_up_proj"
    save_file(tensors | {together: torch.ones(2, 4, 8).to(torch.float8_e4m3fn)}, folder / PLAIN_FILE)
    with pytest.raises(Unsupported, match=f"{together} is fp8 of several experts at once"):
        formats_of(folder)


def test_every_number_of_four_bits_is_unpacked():
    numbers = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).T.to(torch.int8)
    assert torch.equal(unpack(pack(numbers)), numbers)


def stored_as(kind: str) -> StoredFormats:
    return StoredFormats({f"{LAYER}.weight": kind}, None, "quant_model_description.json")


def tensors_of(**changed: torch.Tensor | None) -> list[tuple[str, torch.Tensor]]:
    found = {"weight": torch.ones(4, 8).to(torch.int8), "weight_scale": torch.ones(4, 1), **changed}
    return [(f"{LAYER}.{part}", tensor) for part, tensor in found.items() if tensor is not None]


REFUSED = {
    "of floats by 16 bits": (
        "W8A16",
        {},
        "up_proj.weight is W8A16, which a host does not dequantise; use a checkpoint in W8A8, W8A8_DYNAMIC",
    ),
    "of floats": ("W8A8_MXFP8", {}, "W8A8_MXFP8, which a host"),
    "asymmetric": ("W8A8_DYNAMIC", {"weight_offset": torch.ones(4, 1)}, "up_proj.weight_offset is W8A8_DYNAMIC, which"),
    "by group": (
        "W4A8_DYNAMIC",
        {"weight_scale_second": torch.ones(8, 2), "weight_scale": torch.ones(8, 1)},
        "up_proj.weight_scale_second is W4A8",
    ),
}


@pytest.mark.parametrize(("kind", "changed", "said"), REFUSED.values(), ids=REFUSED)
def test_other_formats_are_named(kind, changed, said):
    with pytest.raises(Unsupported, match=said):
        list(multiply_out(tensors_of(**changed), stored_as(kind), FOLDER))


@pytest.mark.parametrize("missing", ["weight", "weight_scale"])
def test_what_is_missing_is_named(missing: str):
    with pytest.raises(InvalidInput, match=f"/models/moe: {LAYER}.{missing} is missing, though"):
        list(multiply_out(tensors_of(**{missing: None}), stored_as("W8A8_DYNAMIC"), FOLDER))


def test_integers_of_a_hub_are_named():
    source = SimpleNamespace(model_or_path="someone/model", model_config=None)
    of_hub = [(f"{LAYER}.weight", torch.ones(4, 8)), (f"{LAYER}.other", torch.ones(4).int())]
    found = dequantised_weights.dequantised(lambda *_: iter(of_hub), None, source)
    assert [name for name, _ in found] == [name for name, _ in of_hub]
    integers = [(f"{LAYER}.weight", torch.ones(4, 8).to(torch.int8))]
    with pytest.raises(Unsupported, match=rf"someone/model: {LAYER}.weight is torch.int8.*download it, and give"):
        list(dequantised_weights.dequantised(lambda *_: iter(integers), None, source))


STATIC_PARTS = ("weight", "deq_scale", "quant_bias", "input_offset", "input_scale")


@pytest.mark.parametrize("as_bits", [False, True], ids=["", "for float16"])
@pytest.mark.parametrize("bias", [None, torch.linspace(-3, 3, 24)], ids=["", "bias"])
@pytest.mark.parametrize("last_first", [False, True], ids=["as they lie", "backwards"])
def test_dense_layers_whose_rows_have_a_known_scale_are_dequantised(bias, last_first, as_bits):
    weight = torch.randn(24, 8, generator=torch.Generator().manual_seed(0))
    parts = static_tensors(weight, bias)
    scales = parts["deq_scale"]
    if as_bits:
        parts["deq_scale"] = scales.view(torch.int32).to(torch.int64)
    written = [(f"{LAYER}.{part}", tensor) for part, tensor in parts.items()]
    found = dict(multiply_out(written[::-1] if last_first else written, stored_as(STATIC), FOLDER))
    # Their scales are a quotient of products.
    expected = dequantised(weight, "W8A8_DYNAMIC")
    torch.testing.assert_close(found.pop(f"{LAYER}.weight"), expected, rtol=2**-21, atol=0)
    if bias is not None:
        # It was rounded to a step of the products, and to float32.
        error = (found.pop(f"{LAYER}.bias") - bias).abs()
        assert (error <= 0.5001 * scales + 2**-23 * bias.abs()).all()
    assert not found


@pytest.mark.parametrize("missing", STATIC_PARTS)
def test_what_a_static_layer_lacks_is_named(missing):
    parts = static_tensors(torch.ones(4, 8), None)
    written = [(f"{LAYER}.{part}", tensor) for part, tensor in parts.items() if part != missing]
    with pytest.raises(InvalidInput, match=f"/models/moe: {LAYER}.{missing} is missing, though"):
        list(multiply_out(written, stored_as(STATIC), FOLDER))


def test_a_bias_of_its_own_stays_the_bias_of_a_static_layer():
    bias = torch.linspace(-3, 3, 24)
    parts = static_tensors(torch.randn(24, 8, generator=torch.Generator().manual_seed(0)), bias)
    written = [(f"{LAYER}.{part}", tensor) for part, tensor in {**parts, "bias": bias}.items()]
    stored = stored_as(STATIC)
    described = stored._replace(kinds={**stored.kinds, f"{LAYER}.bias": STATIC})
    found = list(multiply_out(written, described, FOLDER))
    assert [name for name, _ in found].count(f"{LAYER}.bias") == 1
    assert dict(found)[f"{LAYER}.bias"] is bias


def test_biases_stay_as_they_are():
    bias = torch.ones(4)
    found = dict(multiply_out(tensors_of(bias=bias), stored_as("W8A8_DYNAMIC"), FOLDER))
    assert set(found) == {f"{LAYER}.weight", f"{LAYER}.bias"}
    assert found[f"{LAYER}.bias"] is bias
