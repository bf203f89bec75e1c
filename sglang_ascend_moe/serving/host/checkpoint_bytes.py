"""How many bytes the weights of a checkpoint take in the memory of a host, read from the headers of its files."""

import math
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.serving.host.tensor_headers import files_of, headers_of
from sglang_ascend_moe.serving.host.weight_formats import NUMBERS_IN_BYTE, formats_of, is_expert

# Of safetensors, by name of the dtype. Floats take the dtype that the model is served in.
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
# Of a number of a weight that is dequantised when it is loaded, if nothing is said: BF16.
_DEQUANTISED = 2
# Of a scale of an expert that is kept, and of a number of it.
_SCALE, _KEPT = 4, 1
# Formats without a header that says what they hold: the size of the file counts.
_OTHER_FILES = ("*.bin", "*.pt", "*.gguf")


class WeightBytes(NamedTuple):
    """Bytes of the experts' weights, of shared experts, and of all others."""

    experts: int
    shared_experts: int
    others: int

    def on_host(self, ranks: int, attention_copies: int) -> int:
        """Of all `ranks` ranks together: experts are divided among them, shared ones are not, and attention and the
        rest are there `attention_copies` times."""
        return self.experts + self.shared_experts * ranks + self.others * attention_copies


def weight_bytes(
    folder: Path, element_bytes: int | None = None, *, dequantised: bool = True, keeps_experts: bool = True
) -> WeightBytes | None:
    """Of the checkpoint in `folder`; None if it holds no file of weights.

    element_bytes: of a floating-point number in memory; None: as in the file. dequantised: as a host serves it.
    keeps_experts: it keeps experts that are integers, as it does with `--ascend-moe`.
    Raises as `formats_of`.
    """
    sizes = {"experts": 0, "shared_experts": 0, "others": 0}
    stored = formats_of(folder) if dequantised else None
    kept = keeps_experts and stored is not None and stored.integer_experts
    for name, tensor in headers_of(folder):
        layer, _, part = name.rpartition(".")
        each = element_bytes if element_bytes and tensor.dtype in _FLOATS else _BYTES.get(tensor.dtype, 1)
        kind = "" if stored is None else stored.kinds.get(f"{layer}.weight", "")
        if numbers := NUMBERS_IN_BYTE.get(kind):
            of_kept = kept and is_expert(f"{layer}.weight")
            of_scale = _SCALE if of_kept and part == "weight_scale" else 0
            each = numbers * (_KEPT if of_kept else element_bytes or _DEQUANTISED) if part == "weight" else of_scale
        sizes[_kind(name)] += math.prod(tensor.shape) * each
    if not files_of(folder):
        others = [file for pattern in _OTHER_FILES for file in folder.glob(pattern)]
        if not others:
            return None
        sizes["others"] = sum(file.stat().st_size for file in others)
    return WeightBytes(**sizes)


def _kind(name: str) -> str:
    if "shared_expert" in name:
        return "shared_experts"
    return "experts" if ".experts." in name else "others"
