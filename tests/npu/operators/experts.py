"""Products of rows by the weights of their experts, and the activation between two of them."""

# ruff: noqa: A002 - parameters are those of the real operators

from __future__ import annotations

import torch
from torch import Tensor

from tests.npu.operators.declaration import operator
from tests.npu.operators.quantisation import DTYPES, GROUP, PACKED, by_row, dtype_of, four_bit_product, scaled_product
from tests.npu.operators.refusals import NotEmulated, WrongArguments


def counts_of(group_list: Tensor, group_list_type: int | None, operator_name: str) -> list[int]:
    """Rows of each expert, from counts (1) or their running sum (0)."""
    match group_list_type:
        case 1:
            return group_list.tolist()
        case 0:
            return torch.diff(group_list, prepend=group_list.new_zeros(1)).tolist()
    raise NotEmulated(operator_name, f"group_list_type={group_list_type}")


def _products(
    x: list[Tensor],
    weight: list[Tensor],
    split_item: int | None,
    group_type: int | None,
    group_list: Tensor | None,
    output_dtype: int | None,
) -> list[Tensor]:
    name = "npu_grouped_matmul"
    if split_item not in (2, 3) or group_type != 0 or group_list is None:
        raise NotEmulated(name, f"{split_item=}, {group_type=}")
    if (len(x), len(weight)) != (1, 1) or weight[0].dim() != 3:
        raise NotEmulated(name, f"{len(x)} rows and {len(weight)} weights")
    if group_list.dtype != torch.int64 or len(group_list) != len(weight[0]):
        raise WrongArguments(name, f"{group_list.dtype} counts of {len(group_list)} groups, {len(weight[0])} weights")
    if x[0].shape[1] != weight[0].shape[1]:
        raise WrongArguments(name, f"rows {list(x[0].shape)} by weights {list(weight[0].shape)}")
    dtype = dtype_of(name, output_dtype, x[0].dtype)
    channels = weight[0].shape[2] * (PACKED if weight[0].dtype == torch.int32 else 1)
    return [x[0].new_empty((len(x[0]), channels), dtype=dtype)]


def _refuse_four_bits(
    rows: Tensor, packed: Tensor, scale: list[Tensor], bias: list[Tensor] | None, group_list_type: int | None
) -> None:
    """Weights of 4 bits take rows of 8, counts, scales [experts, groups, to] and a bias [experts, to]."""
    name = "npu_grouped_matmul"
    experts, channels = len(packed), packed.shape[2] * PACKED
    if rows.dtype != torch.int8:
        raise NotEmulated(name, f"rows of {rows.dtype} and weights of 4 bits")
    if group_list_type != 1:
        raise WrongArguments(name, "weights of 4 bits take counts, whatever group_list_type says")
    if scale[0].dtype != torch.int64 or scale[0].dim() != 3 or scale[0].shape[::2] != (experts, channels):
        raise WrongArguments(name, f"{scale[0].dtype} scales {list(scale[0].shape)} of weights of 4 bits")
    if (groups := scale[0].shape[1]) != 1 and packed.shape[1] != groups * GROUP:
        raise WrongArguments(name, f"{groups} groups of {packed.shape[1]} weights: each has {GROUP}")
    if not bias or bias[0].dtype != torch.float32 or bias[0].shape != (experts, channels):
        raise WrongArguments(name, "weights of 4 bits need a bias in fp32, [experts, to]")


def _refuse_bias(rows: Tensor, weights: Tensor, bias: list[Tensor]) -> None:
    """Rows in bfloat16 take a bias in fp32, those in float16 one in float16; [experts, to]."""
    name = "npu_grouped_matmul"
    taken = {torch.bfloat16: torch.float32, torch.float16: torch.float16}.get(rows.dtype)
    if taken is None:
        raise NotEmulated(name, f"bias of rows of {rows.dtype}")
    if bias[0].dtype != taken or bias[0].shape != weights.shape[::2]:
        raise WrongArguments(name, f"a bias {list(bias[0].shape)} of {bias[0].dtype} for rows of {rows.dtype}")


@operator("npu::npu_grouped_matmul", shapes=_products)
def grouped_matmul(
    x: list[Tensor],
    weight: list[Tensor],
    bias: list[Tensor] | None,
    scale: list[Tensor] | None,
    per_token_scale: list[Tensor] | None,
    split_item: int | None,
    group_type: int | None,
    group_list: Tensor | None,
    group_list_type: int | None,
    output_dtype: int | None,
) -> list[Tensor]:
    """Each expert's rows by its weights [from, to]; of int8 or packed, scaled by channel and token. Others are NaN."""
    name = "npu_grouped_matmul"
    (out,) = _products(x, weight, split_item, group_type, group_list, output_dtype)
    (rows,), (weights,) = x, weight
    quantised, packed = rows.dtype == torch.int8, weights.dtype == torch.int32
    if quantised != bool(scale and per_token_scale):
        raise NotEmulated(name, f"rows of {rows.dtype}, scale={scale is not None}")
    if packed:
        _refuse_four_bits(rows, weights, scale or [], bias, group_list_type)
    elif bias:
        _refuse_bias(rows, weights, bias)
    if quantised and not packed and out.dtype == torch.float16 and scale[0].dtype != torch.float32:
        raise WrongArguments(name, f"{scale[0].dtype} scales of weights of 8 bits, results in float16")
    counts = counts_of(group_list, group_list_type, name)
    if sum(counts) > len(rows):
        raise WrongArguments(name, f"{sum(counts)} rows are counted, {len(rows)} are there")
    out.fill_(torch.nan)
    begin = 0
    for expert, count in enumerate(counts):
        part = slice(begin, begin + count)
        if packed:
            out[part] = four_bit_product(
                rows[part], weights[expert], scale[0][expert], per_token_scale[0][part], bias[0][expert]
            )
        elif quantised:
            out[part] = scaled_product(rows[part], weights[expert], scale[0][expert], per_token_scale[0][part])
        elif bias:
            out[part] = rows[part].float() @ weights[expert].float() + bias[0][expert].float()
        else:
            out[part] = rows[part] @ weights[expert]
        begin += count
    return [out]


def product_into(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    row_scale: Tensor | None,
    counts: Tensor,
    out: Tensor,
) -> None:
    """What our library for torch has as `grouped_product`, on the CPU."""
    given = {"bias": bias, "scale": scale, "per_token_scale": row_scale}
    lists = {name: [tensor] for name, tensor in given.items() if tensor is not None}
    numbers = {dtype: number for number, dtype in DTYPES.items()}
    (made,) = torch.ops.npu.npu_grouped_matmul(
        [rows], [weight], **lists, split_item=2, group_type=0, group_list=counts, group_list_type=1,
        output_dtype=numbers[out.dtype],
    )  # fmt: skip
    total = int(counts.sum())
    out[:total] = made[:total]


def activate(rows: Tensor, *, dim: int = -1, left: bool = True) -> Tensor:
    """One half by the SiLU of the other, in fp32."""
    first, second = rows.float().chunk(2, dim=dim)
    gate, up = (first, second) if left else (second, first)
    return gate * gate.sigmoid() * up


def half_of(tensor: Tensor, dim: int = -1) -> tuple[int, ...]:
    """The shape of half a tensor."""
    shape = list(tensor.shape)
    shape[dim] //= 2
    return tuple(shape)


def _half(input: Tensor, dim: int) -> Tensor:
    return input.new_empty(half_of(input, dim))


@operator("npu::npu_swiglu", shapes=_half)
def swiglu(input: Tensor, dim: int) -> Tensor:
    return activate(input, dim=dim).to(input.dtype)


def clipped(halves: tuple[Tensor, Tensor], *, alpha: float, limit: float, bias: float) -> Tensor:
    """gpt-oss's activation of gate and up, in fp32."""
    gate, up = (half.float() for half in halves)
    gate = gate.clamp(max=limit)
    return gate * (alpha * gate).sigmoid() * (up.clamp(-limit, limit) + bias)


def _half_of_rows(x: Tensor, dim: int) -> Tensor:
    if dim not in (-1, 1) or x.dim() != 2:
        raise NotEmulated("npu_clipped_swiglu", f"{dim=} of {list(x.shape)}")
    return x.new_empty(half_of(x))


@operator("npu::npu_clipped_swiglu", shapes=_half_of_rows)
def clipped_swiglu(
    x: Tensor, group_index: Tensor | None, dim: int, alpha: float, limit: float, bias: float, interleaved: bool
) -> Tensor:
    """The activation of the counted rows, or of all. Others are NaN."""
    out = _half_of_rows(x, dim)
    total = len(x) if group_index is None else int(group_index.sum())
    rows = x[:total]
    halves = (rows[:, ::2], rows[:, 1::2]) if interleaved else tuple(rows.chunk(2, dim=1))
    out.fill_(torch.nan)
    out[:total] = clipped(halves, alpha=alpha, limit=limit, bias=bias).to(x.dtype)
    return out


def _half_quantised(x: Tensor, quant_mode: int) -> tuple[Tensor, Tensor]:
    if quant_mode != 1 or not x.is_floating_point():
        raise NotEmulated("npu_dequant_swiglu_quant", f"{quant_mode=}, rows of {x.dtype}")
    return x.new_empty(half_of(x), dtype=torch.int8), x.new_empty(x.shape[:-1], dtype=torch.float32)


@operator("npu::npu_dequant_swiglu_quant", shapes=_half_quantised)
def dequant_swiglu_quant(x: Tensor, activate_left: bool, quant_mode: int) -> tuple[Tensor, Tensor]:
    """The activation, quantised by row before it is rounded."""
    _half_quantised(x, quant_mode)
    return by_row(activate(x, left=activate_left))
