"""The bytes of a checkpoint are read from headers, without its weights, and counted for all ranks together."""

import json
import struct
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.host.checkpoint_bytes import WeightBytes, weight_bytes
from sglang_ascend_moe.serving.host.tensor_headers import headers_of
from tests.serving.quantised_models import BITS, write_compressed, write_fp8, write_quantised


def write_header(folder: Path, tensors: dict[str, tuple[str, list[int]]]) -> Path:
    """A safetensors file of the right size that takes no disk: only its header is written."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = {"BF16": 2, "F32": 4, "I8": 1}[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


TENSORS = {
    "model.layers.0.mlp.experts.0.up_proj.weight": ("BF16", [64, 32]),
    "model.layers.0.mlp.shared_expert.up_proj.weight": ("BF16", [16, 32]),
    "model.layers.0.self_attn.q_proj.weight": ("F32", [8, 32]),
    "model.layers.0.mlp.experts.0.scale": ("I8", [64]),
}


def test_experts_shared_experts_and_the_rest_are_told_apart(tmp_path: Path):
    write_header(tmp_path, TENSORS)
    assert weight_bytes(tmp_path) == WeightBytes(experts=4096 + 64, shared_experts=1024, others=1024)


def test_floats_take_the_dtype_that_the_model_is_served_in(tmp_path: Path):
    write_header(tmp_path, TENSORS)
    assert weight_bytes(tmp_path, 4) == WeightBytes(experts=8192 + 64, shared_experts=2048, others=1024)


@pytest.mark.parametrize("write", [write_quantised, write_compressed, write_fp8])
@pytest.mark.parametrize("kind", BITS)
def test_quantised_weights_are_counted_as_they_are_served(tmp_path: Path, write, kind: str):
    plain = write_checkpoint(tmp_path / "plain")
    folder = write(plain, tmp_path / "quantised", kind)
    expected = weight_bytes(plain, 4)
    assert weight_bytes(folder, 4, keeps_experts=False) == expected
    if write is not write_fp8:
        # A byte for each number, and a scale for each channel.
        scales = sum(4 * header.shape[0] for name, header in headers_of(plain) if ".experts." in name)
        expected = expected._replace(experts=expected.experts // 4 + scales)
    assert weight_bytes(folder, 4) == expected


def test_ranks_divide_experts_and_each_copy_of_attention_holds_the_rest():
    sizes = WeightBytes(experts=1000, shared_experts=10, others=100)
    assert sizes.on_host(ranks=4, attention_copies=1) == 1000 + 40 + 100
    assert sizes.on_host(ranks=4, attention_copies=4) == 1000 + 40 + 400


def test_a_real_checkpoint_is_counted_as_its_tensors(tmp_path: Path):
    from safetensors.torch import load_file

    write_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert sum(weight_bytes(tmp_path)) == sum(tensor.nbytes for tensor in tensors.values())


def test_other_formats_count_as_their_files(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(100))
    assert weight_bytes(tmp_path) == WeightBytes(0, 0, 100)


def test_a_folder_without_weights_says_nothing(tmp_path: Path):
    assert weight_bytes(tmp_path) is None


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", struct.pack("<Q", 2**60), struct.pack("<Q", 3) + b"{x}"],
    ids=["empty", "cut", "far", "no JSON"],
)
def test_a_damaged_file_counts_nothing_and_is_left_to_sglang(tmp_path: Path, content: bytes):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert weight_bytes(tmp_path) == WeightBytes(0, 0, 0)
