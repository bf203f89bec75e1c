"""Stand-ins for the operators of SGLang's Ascend runner: their schemas are torch_npu's, their arithmetic the CPU's.

Like those of a device they look at the counts themselves, and leave rows behind the last counted one as they find them:
here with NaN, so that a test sees who reads them. No NPU computes like this to the bit.
"""

# ruff: noqa: A002, ARG001 - parameters are those of the real operators

from __future__ import annotations

import sys
import types
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# As torch_npu 2.14.0 registers them.
SCHEMAS = (
    "npu_grouped_matmul(Tensor[] x, Tensor[] weight, *, Tensor[]? bias=None, Tensor[]? scale=None, Tensor[]?"
    " offset=None, Tensor[]? antiquant_scale=None, Tensor[]? antiquant_offset=None, Tensor[]? per_token_scale=None,"
    " Tensor? group_list=None, Tensor[]? activation_input=None, Tensor[]? activation_quant_scale=None, Tensor[]?"
    " activation_quant_offset=None, int? split_item=0, int? group_type=None, int? group_list_type=0, int? act_type=0,"
    " int[]? tuning_config=None, int? output_dtype=None, int? x_dtype=None, int? weight_dtype=None, int?"
    " scale_dtype=None, int? per_token_scale_dtype=None) -> Tensor[]",
    'npu_dynamic_quant(Tensor input, *, Tensor? smooth_scales=None, Tensor? group_index=None, int? dst_type=None, str'
    ' quant_mode="pertoken", float dst_type_max=0.0) -> (Tensor, Tensor)',
    "npu_swiglu(Tensor input, int dim=-1) -> Tensor",
)  # fmt: skip
BFLOAT16, FLOAT16 = 15, 5
"""`torch.bfloat16` and `torch.float16` as an operator sees them."""


def grouped_matmul(x, weight, *, scale=None, per_token_scale=None, group_list=None, split_item=0, group_type=None,
                   group_list_type=0, output_dtype=None, **others):  # fmt: skip
    """Each expert's rows by its weights [from, to]; of int8, scaled by channel and by token and rounded once."""
    assert (split_item, group_type, group_list_type) == (2, 0, 1), "compact rows, counted"
    assert not any(value is not None for value in others.values() if value != 0)
    assert group_list.dtype == torch.int64
    (rows,), (weights,) = x, weight
    dtype = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}[output_dtype]
    out = torch.full((len(rows), weights.shape[2]), torch.nan, dtype=dtype)
    begin = 0
    for expert, count in enumerate(group_list.tolist()):
        part = slice(begin, begin + count)
        if rows.dtype == torch.int8:
            products = rows[part].to(torch.int32) @ weights[expert].to(torch.int32)
            scaled = products.float() * scale[0][expert].float() * per_token_scale[0][part, None]
            out[part] = scaled.to(dtype)
        else:
            out[part] = rows[part] @ weights[expert]
        begin += count
    return [out]


def dynamic_quant(
    input: Tensor, *, smooth_scales=None, group_index=None, dst_type=None, quant_mode="pertoken", dst_type_max=0.0
):
    """int8 rows and their scales, as this project's own dispatch quantises them."""
    assert (smooth_scales, group_index, quant_mode, dst_type_max) == (None, None, "pertoken", 0.0)
    values = input.float()
    largest = values.abs().amax(dim=1)
    scaled = values * torch.where(largest > 0, 127 / largest, 0.0)[:, None]
    return torch.round(scaled).to(torch.int8), largest / 127


def swiglu(input: Tensor, dim: int = -1) -> Tensor:
    """SGLang's native form of the activation."""
    gate, up = input.chunk(2, dim=dim)
    return F.silu(gate) * up


def swiglu_quant(x: Tensor, group_list: Tensor, group_list_type: int, need_quant: bool = True):
    """`sgl_kernel_npu.activation.swiglu_quant`: of the counted rows only."""
    assert group_list_type == 1
    total = int(group_list.sum())
    activated = swiglu(x[:total])
    rows = torch.full((len(x), x.shape[1] // 2), torch.nan, dtype=x.dtype)
    if not need_quant:
        rows[:total] = activated
        return rows, None
    quantised, scales = torch.zeros(rows.shape, dtype=torch.int8), torch.full((len(x),), torch.nan)
    quantised[:total], scales[:total] = dynamic_quant(activated)
    return quantised, scales


@cache
def _library() -> torch.library.Library:
    library = torch.library.Library("npu", "FRAGMENT")
    for schema, function in zip(SCHEMAS, (grouped_matmul, dynamic_quant, swiglu), strict=True):
        library.define(schema)
        library.impl(schema.split("(")[0], function, "CPU")
    return library


def install() -> None:
    """`torch.ops.npu` and `sgl_kernel_npu` are there from now on in this process."""
    _library()
    for name in ("sgl_kernel_npu", "sgl_kernel_npu.activation", "sgl_kernel_npu.activation.swiglu_quant"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["sgl_kernel_npu.activation.swiglu_quant"].swiglu_quant = swiglu_quant
