"""How many bytes the weights of a checkpoint take in the memory of a host, read from the headers of its files."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from sglang_ascend_moe.serving.launcher.modelslim import tensor_formats

_HEADER_LENGTH = struct.Struct("<Q")
# Of safetensors, by name of the dtype. Floats take the dtype that the model is served in.
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
# Numbers in a byte of weights that are dequantised when they are loaded, by modelslim's word; BF16 if nothing is said.
_NUMBERS = {"W8A8_DYNAMIC": 1, "W4A8_DYNAMIC": 2}
_DEQUANTISED = 2
# Formats without a header that says what they hold: the size of the file counts.
_OTHER_FILES = ("*.bin", "*.pt", "*.gguf")


class WeightBytes(NamedTuple):
    """Bytes of the experts' weights, of shared experts, and of all others."""

    experts: int
    shared_experts: int
    others: int

    def on_host(self, ranks: int, attention_groups: int) -> int:
        """Of all `ranks` ranks together: experts are divided among them, shared ones are not, and attention and the
        rest are divided within each of `attention_groups` groups."""
        return self.experts + self.shared_experts * ranks + self.others * attention_groups


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]


def weight_bytes(folder: Path, element_bytes: int | None = None) -> WeightBytes | None:
    """Of the checkpoint in `folder`; None if it holds no file of weights.

    element_bytes: of a floating-point number in memory; None: as in the file. Raises as `tensor_formats`.
    """
    sizes = {"experts": 0, "shared_experts": 0, "others": 0}
    files, formats = sorted(folder.glob("*.safetensors")), tensor_formats(folder)
    for name, tensor in (item for file in files for item in _tensors(file)):
        layer, _, part = name.rpartition(".")
        each = element_bytes if element_bytes and tensor.dtype in _FLOATS else _BYTES.get(tensor.dtype, 1)
        if numbers := _NUMBERS.get(formats.get(f"{layer}.weight", "")):
            each = numbers * (element_bytes or _DEQUANTISED) if part == "weight" else 0
        sizes[_kind(name)] += math.prod(tensor.shape) * each
    if not files:
        others = [file for pattern in _OTHER_FILES for file in folder.glob(pattern)]
        if not others:
            return None
        sizes["others"] = sum(file.stat().st_size for file in others)
    return WeightBytes(**sizes)


def _kind(name: str) -> str:
    if "shared_expert" in name:
        return "shared_experts"
    return "experts" if ".experts." in name else "others"


def _tensors(file: Path) -> Iterator[tuple[str, _Tensor]]:
    """Names and shapes in a safetensors file; nothing of one that is damaged, which SGLang names when it loads it."""
    with file.open("rb") as stream:
        head = stream.read(_HEADER_LENGTH.size)
        if len(head) < _HEADER_LENGTH.size:
            return
        (length,) = _HEADER_LENGTH.unpack(head)
        if length > file.stat().st_size:
            return
        try:
            header = msgspec.json.decode(stream.read(length), type=dict[str, msgspec.Raw])
            for name, raw in header.items():
                if name != "__metadata__":
                    yield name, msgspec.json.decode(raw, type=_Tensor)
        except msgspec.DecodeError:
            return
