"""Tensors of modelslim's checkpoints as a host loads them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.host.dequantised_weights import multiply_out, unpack
from sglang_ascend_moe.serving.launcher.modelslim import tensor_formats
from tests.serving.quantised_models import BITS, WEIGHTS_FILE, by_channel, pack, write_quantised

FOLDER = Path("/models/moe")
LAYER = "model.layers.0.mlp.experts.0.up_proj"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("plain"), "deepseek_v3")


@pytest.mark.parametrize("last_first", [False, True], ids=["as they lie", "backwards"])
@pytest.mark.parametrize("kind", BITS)
def test_each_weight_is_its_numbers_by_its_scales(plain, tmp_path, kind: str, last_first: bool):
    folder = write_quantised(plain, tmp_path / "quantised", kind)
    formats = tensor_formats(folder)
    written = list(load_file(folder / WEIGHTS_FILE).items())
    found = dict(multiply_out(written[::-1] if last_first else written, formats, folder))
    expected = load_file(plain / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        if formats[name] != "FLOAT":
            numbers, scales = by_channel(tensor, BITS[formats[name]])
            tensor = numbers.float() * scales
        assert torch.equal(found[name], tensor), name
    assert {formats[name] for name in expected} == {"FLOAT", "W8A8_DYNAMIC", kind}


def test_every_number_of_four_bits_is_unpacked():
    numbers = torch.cartesian_prod(torch.arange(-8, 8), torch.arange(-8, 8)).T.to(torch.int8)
    assert torch.equal(unpack(pack(numbers)), numbers)


def tensors_of(**changed: torch.Tensor | None) -> list[tuple[str, torch.Tensor]]:
    found = {"weight": torch.ones(4, 8).to(torch.int8), "weight_scale": torch.ones(4, 1), **changed}
    return [(f"{LAYER}.{part}", tensor) for part, tensor in found.items() if tensor is not None]


REFUSED = {
    "static": (
        "W8A8",
        {},
        "up_proj.weight is W8A8, which a host does not dequantise; use a checkpoint in W8A8_DYNAMIC",
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
        list(multiply_out(tensors_of(**changed), {f"{LAYER}.weight": kind}, FOLDER))


@pytest.mark.parametrize("missing", ["weight", "weight_scale"])
def test_what_is_missing_is_named(missing: str):
    with pytest.raises(InvalidInput, match=f"/models/moe: {LAYER}.{missing} is missing, though"):
        list(multiply_out(tensors_of(**{missing: None}), {f"{LAYER}.weight": "W8A8_DYNAMIC"}, FOLDER))


def test_biases_stay_as_they_are():
    bias = torch.ones(4)
    found = dict(multiply_out(tensors_of(bias=bias), {f"{LAYER}.weight": "W8A8_DYNAMIC"}, FOLDER))
    assert set(found) == {f"{LAYER}.weight", f"{LAYER}.bias"}
    assert found[f"{LAYER}.bias"] is bias
