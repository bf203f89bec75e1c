"""Calls of torch's operators, by name: functions of a `Values`, which makes their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BF16, F32, F64, I8, I32, I64 = torch.bfloat16, torch.float32, torch.float64, torch.int8, torch.int32, torch.int64


class Values:
    """Tensors with the same values on whatever device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(5)

    def rows(self, *shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
        return torch.randn(*shape, generator=self._generator).to(dtype).to(self.device)

    def whole(self, *shape: int, below: int = 8, dtype: torch.dtype = I64) -> torch.Tensor:
        return torch.randint(0, below, shape, generator=self._generator).to(dtype).to(self.device)

    def mask(self, *shape: int) -> torch.Tensor:
        return self.whole(*shape, below=2).bool()


def _changed(tensor: torch.Tensor, change: Callable[[torch.Tensor], Any]) -> tuple[torch.Tensor, Any]:
    """The tensor after a change in place, and what the change returned."""
    returned = change(tensor)
    return tensor, returned


def _set_out(values: Values, call: Callable[[torch.Tensor], Any], dtype: torch.dtype = F32) -> torch.Tensor:
    out = torch.empty(0, dtype=dtype, device=values.device)
    call(out)
    return out


def _written(values: Values) -> torch.Tensor:
    cache = torch.zeros(8, 2, 4, device=values.device)
    cache[values.whole(3, below=8), :, 1:3] = values.rows(3, 2, 2)
    return cache


def _attend(values: Values, **options: bool) -> torch.Tensor:
    query, key, value = (values.rows(1, 2, 5, 8) for _ in range(3))
    # On the CPU there is a fused form as well, with other bits.
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, **options)


CALLS: dict[str, Callable[[Values], Any]] = {
    # made
    "zeros": lambda v: torch.zeros(2, 3, device=v.device),
    "ones_like": lambda v: torch.ones_like(v.rows(2, 3)),
    "full": lambda v: torch.full((2, 2), 3.5, device=v.device),
    "full_like": lambda v: torch.full_like(v.whole(3), 4),
    "arange": lambda v: torch.arange(1, 9, 2, device=v.device),
    "arange of floats": lambda v: torch.arange(0, 1, 0.125, device=v.device),
    "linspace": lambda v: torch.linspace(0, 1, 5, device=v.device),
    "eye": lambda v: torch.eye(3, device=v.device),
    "tensor": lambda v: torch.tensor([[1, 2], [3, 4]], device=v.device),
    "as_tensor": lambda v: torch.as_tensor([1.5, 2.5], device=v.device),
    "new_zeros": lambda v: v.rows(2).new_zeros(3, 2),
    "new_tensor": lambda v: v.rows(2).new_tensor([1.0, 2.0]),
    "scalar_tensor": lambda v: torch.scalar_tensor(4, device=v.device),
    "tril_indices": lambda v: torch.tril_indices(3, 3, device=v.device),
    # element by element
    "add": lambda v: v.rows(3, 4) + v.rows(3, 4),
    "add of a number": lambda v: v.rows(3, 4, dtype=BF16) + 2.5,
    "add with alpha": lambda v: torch.add(v.rows(3), v.rows(3), alpha=2),
    "add broadcast": lambda v: v.rows(3, 1) + v.rows(1, 4),
    "add of a host scalar": lambda v: v.rows(3) + torch.tensor(2.0),
    "add of two dtypes": lambda v: v.rows(3, dtype=BF16) + v.rows(3),
    "add of int and float": lambda v: v.whole(3) + v.rows(3),
    "sub": lambda v: v.rows(3, 4) - v.rows(4),
    "rsub": lambda v: 1 - v.rows(4),
    "mul": lambda v: v.rows(3, 4, dtype=BF16) * v.rows(4, dtype=BF16),
    "div": lambda v: v.rows(3) / v.rows(3),
    "div of ints": lambda v: v.whole(5, below=9) / 4,
    "floor_divide": lambda v: v.whole(5, below=90) // 7,
    "remainder": lambda v: v.whole(5, below=90) % 7,
    "pow": lambda v: v.rows(4).pow(2),
    "neg": lambda v: -v.rows(4),
    "abs": lambda v: v.rows(4).abs(),
    "exp": lambda v: v.rows(4).exp(),
    "log": lambda v: v.rows(4).abs().log(),
    "sqrt": lambda v: v.rows(4).abs().sqrt(),
    "rsqrt": lambda v: v.rows(4).abs().rsqrt(),
    "sin": lambda v: v.rows(40).sin(),
    "cos": lambda v: v.rows(40).cos(),
    "tanh": lambda v: v.rows(4).tanh(),
    "sigmoid": lambda v: v.rows(4).sigmoid(),
    "silu": lambda v: F.silu(v.rows(3, 4, dtype=BF16)),
    "gelu": lambda v: F.gelu(v.rows(3, 4)),
    "relu": lambda v: F.relu(v.rows(3, 4)),
    "softplus": lambda v: F.softplus(v.rows(4)),
    "round": lambda v: (v.rows(6) * 4).round(),
    "floor": lambda v: v.rows(6).floor(),
    "clamp": lambda v: v.rows(6).clamp(-0.5, 0.5),
    "clamp by tensors": lambda v: torch.clamp(v.rows(6), min=v.rows(6)),
    "maximum": lambda v: torch.maximum(v.rows(4), v.rows(4)),
    "minimum": lambda v: torch.minimum(v.whole(4), v.whole(4)),
    "where": lambda v: torch.where(v.mask(5), v.rows(5), v.rows(5)),
    "where of a number": lambda v: torch.where(v.mask(5), v.rows(5), 0.0),
    "lerp": lambda v: torch.lerp(v.rows(4), v.rows(4), 0.25),
    "addcmul": lambda v: torch.addcmul(v.rows(4), v.rows(4), v.rows(4), value=0.5),
    "isnan": lambda v: (v.rows(4).log()).isnan(),
    "nan_to_num": lambda v: v.rows(4).log().nan_to_num(0.0),
    "eq": lambda v: v.whole(9) == v.whole(9),
    "ne of a number": lambda v: v.whole(9) != 3,
    "lt": lambda v: v.rows(9) < v.rows(9),
    "ge of a number": lambda v: v.rows(9) >= 0,
    "logical_and": lambda v: v.mask(9).logical_and(v.mask(9)),
    "logical_not": lambda v: v.mask(9).logical_not(),
    "bitwise_and": lambda v: v.whole(9) & 3,
    "bitwise_or": lambda v: v.mask(9) | v.mask(9),
    "shift": lambda v: v.whole(9) << 2,
    "invert": lambda v: ~v.mask(9),
    # in place, and into a result that is given
    "add_": lambda v: _changed(v.rows(4), lambda x: x.add_(1)),
    "mul_": lambda v: _changed(v.rows(4), lambda x: x.mul_(v.rows(4))),
    "fill_": lambda v: _changed(v.rows(4), lambda x: x.fill_(2)),
    "zero_": lambda v: _changed(v.rows(4), lambda x: x[1:3].zero_()),
    "copy_": lambda v: _changed(v.rows(4), lambda x: x.copy_(v.rows(1))),
    "copy_ of another dtype": lambda v: _changed(v.whole(4), lambda x: x.copy_(v.rows(4) * 9)),
    "clamp_": lambda v: _changed(v.rows(4), lambda x: x.clamp_(min=0)),
    "masked_fill_": lambda v: _changed(v.rows(4), lambda x: x.masked_fill_(v.mask(4), -1)),
    "scatter_": lambda v: _changed(v.rows(3, 8), lambda x: x.scatter_(1, v.whole(3, 2), v.rows(3, 2))),
    "scatter_add_": lambda v: _changed(v.rows(8), lambda x: x.scatter_add_(0, v.whole(20), v.rows(20))),
    "index_add_": lambda v: _changed(v.rows(8, 3), lambda x: x.index_add_(0, v.whole(4), v.rows(4, 3))),
    "index_copy_": lambda v: _changed(
        v.rows(8, 3), lambda x: x.index_copy_(0, torch.tensor([5, 1], device=v.device), v.rows(2, 3))
    ),
    "index_fill_": lambda v: _changed(v.rows(8, 3), lambda x: x.index_fill_(0, v.whole(4), 1.0)),
    "index_put_": lambda v: _changed(
        v.rows(8, 3), lambda x: x.index_put_((torch.tensor([5, 1], device=v.device),), v.rows(2, 3))
    ),
    "index_put_ that adds": lambda v: _changed(
        v.rows(8), lambda x: x.index_put_((v.whole(20),), v.rows(20), accumulate=True)
    ),
    "setitem of positions": _written,
    "setitem of a mask": lambda v: _changed(v.rows(4, 3), lambda x: x.__setitem__(v.mask(4, 3), 7.0)),
    "setitem of a slice": lambda v: _changed(v.rows(4, 3), lambda x: x.__setitem__(slice(1, 3), v.rows(2, 3))),
    "setitem of host positions": lambda v: _changed(v.rows(4), lambda x: x.__setitem__(torch.tensor([2, 0]), 1.0)),
    "transpose_": lambda v: _changed(v.rows(4, 3), lambda x: x.transpose_(0, 1)),
    "resize_": lambda v: _changed(v.rows(6), lambda x: x.resize_(2, 3)),
    "set_": lambda v: _changed(v.rows(6), lambda x: x.set_(v.rows(3, 2))),
    "add out": lambda v: _set_out(v, lambda out: torch.add(v.rows(4), v.rows(4), out=out)),
    "matmul out": lambda v: _set_out(v, lambda out: torch.matmul(v.rows(4, 3), v.rows(3, 2), out=out)),
    "cat out": lambda v: _set_out(v, lambda out: torch.cat([v.rows(2), v.rows(3)], out=out)),
    "cumsum out": lambda v: _set_out(v, lambda out: torch.cumsum(v.whole(4), 0, out=out), I64),
    "index_select out": lambda v: _set_out(v, lambda out: torch.index_select(v.rows(9, 2), 0, v.whole(3), out=out)),
    "add out strided": lambda v: _changed(
        v.rows(4, 6), lambda x: torch.add(v.rows(4, 3), 1, out=x[:, ::2]) is not None
    ),
    # sums and orders
    "sum": lambda v: v.rows(7, 9).sum(),
    "sum of a dimension": lambda v: v.rows(7, 9).sum(dim=1, keepdim=True),
    "sum of bools": lambda v: v.mask(30).sum(),
    "mean": lambda v: v.rows(7, 9).mean(dim=-1),
    "var": lambda v: v.rows(7, 9).var(dim=-1),
    "prod": lambda v: v.whole(5).prod(),
    "max": lambda v: v.rows(7, 9).max(),
    "max of a dimension": lambda v: v.rows(7, 9).max(dim=1),
    "amax": lambda v: v.rows(7, 9).amax(dim=0),
    "argmax": lambda v: v.rows(7, 9).argmax(dim=-1),
    "argmin": lambda v: v.rows(7, 9).argmin(),
    "any": lambda v: v.mask(4, 3).any(dim=1),
    "all": lambda v: v.mask(4, 3).all(),
    "cumsum": lambda v: v.whole(9).cumsum(0),
    "logsumexp": lambda v: v.rows(3, 9).logsumexp(dim=-1),
    "norm": lambda v: v.rows(9).norm(),
    "sort": lambda v: v.rows(3, 9).sort(dim=-1, descending=True),
    "sort that is stable": lambda v: v.whole(30).sort(stable=True),
    "argsort": lambda v: v.rows(9).argsort(),
    "topk": lambda v: v.rows(5, 9).topk(3, dim=-1),
    "searchsorted": lambda v: torch.searchsorted(v.rows(9).sort().values, v.rows(4)),
    "bucketize": lambda v: torch.bucketize(v.rows(4), v.rows(3).sort().values),
    "histc": lambda v: torch.histc(v.rows(30), bins=4, min=-2, max=2),
    "isin": lambda v: torch.isin(v.whole(9), v.whole(3)),
    # positions
    "index": lambda v: v.rows(8, 3)[v.whole(4)],
    "index of two": lambda v: v.rows(8, 8)[v.whole(4), v.whole(4)],
    "index of a mask": lambda v: v.rows(8, 3)[v.mask(8)],
    "index by host positions": lambda v: v.rows(8, 3)[[1, 5]],
    "index_select": lambda v: v.rows(8, 3).index_select(0, v.whole(5)),
    "gather": lambda v: v.rows(4, 8).gather(1, v.whole(4, 2)),
    "take_along_dim": lambda v: torch.take_along_dim(v.rows(4, 8), v.whole(4, 2), dim=1),
    "embedding": lambda v: F.embedding(v.whole(2, 5), v.rows(8, 4)),
    "one_hot": lambda v: F.one_hot(v.whole(6), 8),
    "masked_fill": lambda v: v.rows(5).masked_fill(v.mask(5), float("-inf")),
    "masked_select": lambda v: v.rows(9).masked_select(v.mask(9)),
    "nonzero": lambda v: v.mask(9).nonzero(),
    "nonzero as tuple": lambda v: v.mask(3, 9).nonzero(as_tuple=True),
    "unique": lambda v: v.whole(30).unique(return_inverse=True),
    "bincount": lambda v: v.whole(30).bincount(minlength=9),
    "repeat_interleave": lambda v: torch.repeat_interleave(v.rows(4), v.whole(4)),
    "repeat_interleave evenly": lambda v: v.rows(4).repeat_interleave(3),
    "scatter": lambda v: v.rows(8).scatter(0, v.whole(3), 1.0),
    "index_add": lambda v: v.rows(8).index_add(0, v.whole(3), v.rows(3)),
    "scatter_reduce": lambda v: v.rows(8).scatter_reduce(0, v.whole(20), v.rows(20), "amax"),
    # forms
    "view": lambda v: v.rows(4, 6).view(2, -1),
    "reshape of a transpose": lambda v: v.rows(4, 6).t().reshape(3, 8),
    "as_strided": lambda v: v.rows(12).as_strided((2, 3), (1, 4), 1),
    "permute": lambda v: v.rows(2, 3, 4).permute(2, 0, 1),
    "contiguous": lambda v: v.rows(3, 4).t().contiguous(),
    "expand": lambda v: v.rows(3, 1).expand(3, 5) * 1,
    "squeeze": lambda v: v.rows(3, 1).squeeze(-1).unsqueeze(0),
    "flatten": lambda v: v.rows(2, 3, 4).flatten(1),
    "unflatten": lambda v: v.rows(2, 12).unflatten(1, (3, 4)),
    "split": lambda v: v.rows(7, 2).split([3, 4]),
    "chunk": lambda v: v.rows(8, 6).chunk(2, dim=-1),
    "unbind": lambda v: v.rows(3, 2).unbind(0),
    "diagonal": lambda v: v.rows(4, 4).diagonal(),
    "unfold": lambda v: v.rows(9).unfold(0, 3, 2),
    "narrow": lambda v: v.rows(9).narrow(0, 2, 4),
    "select": lambda v: v.rows(9, 2)[4],
    "a step of a slice": lambda v: v.rows(9, 4)[::2, 1:3],
    "view of another dtype": lambda v: v.rows(4, 2).view(torch.int32),
    "view of narrower elements": lambda v: v.rows(4, 2)[1:].view(torch.uint8),
    "view_as_real": lambda v: torch.view_as_real(torch.complex(v.rows(4), v.rows(4))[1:]),
    "cat": lambda v: torch.cat([v.rows(2, 3), v.rows(4, 3)]),
    "cat of dtypes": lambda v: torch.cat([v.rows(2), v.whole(2)]),
    "stack": lambda v: torch.stack([v.rows(3), v.rows(3)], dim=1),
    "repeat": lambda v: v.rows(2, 3).repeat(2, 2),
    "tile": lambda v: v.rows(2, 3).tile(2),
    "roll": lambda v: v.rows(9).roll(2),
    "flip": lambda v: v.rows(3, 4).flip(1),
    "pad": lambda v: F.pad(v.rows(3, 4), (1, 2, 0, 1), value=1.0),
    "tril": lambda v: v.rows(4, 4).tril(),
    "triu": lambda v: v.rows(4, 4).triu(1),
    "clone": lambda v: v.rows(4, 4)[:, 1].clone(),
    "movedim": lambda v: v.rows(2, 3, 4).movedim(0, -1),
    # dtypes
    "to bfloat16": lambda v: v.rows(30).to(BF16),
    "to float64": lambda v: v.rows(3).double(),
    "to int8": lambda v: (v.rows(30) * 50).to(I8),
    "to int32": lambda v: v.whole(30).to(I32),
    "to bool": lambda v: v.whole(9).bool(),
    "to float8": lambda v: v.rows(30).to(torch.float8_e4m3fn).float(),
    "type_as": lambda v: v.whole(9).type_as(v.rows(1)),
    # products and layers
    "mm": lambda v: v.rows(4, 16) @ v.rows(16, 8),
    "mm of bfloat16": lambda v: v.rows(4, 16, dtype=BF16) @ v.rows(16, 8, dtype=BF16),
    "mm of float64": lambda v: v.rows(4, 16, dtype=F64) @ v.rows(16, 8, dtype=F64),
    "mm transposed": lambda v: v.rows(4, 16) @ v.rows(8, 16).t(),
    "mv": lambda v: v.rows(4, 16) @ v.rows(16),
    "bmm": lambda v: torch.bmm(v.rows(2, 4, 6), v.rows(2, 6, 3)),
    "baddbmm": lambda v: torch.baddbmm(v.rows(2, 4, 3), v.rows(2, 4, 6), v.rows(2, 6, 3)),
    "addmm": lambda v: torch.addmm(v.rows(3), v.rows(4, 6), v.rows(6, 3)),
    "linear": lambda v: F.linear(v.rows(5, 8, dtype=BF16), v.rows(3, 8, dtype=BF16), v.rows(3, dtype=BF16)),
    "einsum": lambda v: torch.einsum("bij,bkj->bik", v.rows(2, 3, 4), v.rows(2, 5, 4)),
    "outer": lambda v: torch.outer(v.rows(3), v.rows(4)),
    "softmax": lambda v: v.rows(3, 9).softmax(dim=-1),
    "softmax in float": lambda v: F.softmax(v.rows(3, 9, dtype=BF16), dim=-1, dtype=F32),
    "log_softmax": lambda v: v.rows(3, 9).log_softmax(dim=-1),
    "layer_norm": lambda v: F.layer_norm(v.rows(3, 8), (8,), v.rows(8), v.rows(8)),
    "rms_norm": lambda v: F.rms_norm(v.rows(3, 8), (8,), v.rows(8)),
    "attention": lambda v: _attend(v),
    "causal attention": lambda v: _attend(v, is_causal=True),
    "group_norm": lambda v: F.group_norm(v.rows(2, 4, 3), 2, v.rows(4), v.rows(4)),
    "conv2d": lambda v: F.conv2d(v.rows(1, 2, 5, 5), v.rows(3, 2, 3, 3)),
    "foreach add": lambda v: torch._foreach_add([v.rows(3), v.rows(4)], 1.5),
    "foreach copy": lambda v: _changed(v.rows(3), lambda x: torch._foreach_copy_([x], [v.rows(3)])),
    # values on the host
    "item": lambda v: v.rows(3).sum().item(),
    "tolist": lambda v: v.rows(3).tolist(),
    "condition": lambda v: bool((v.rows(3) > 9).any()),
    "equal": lambda v: torch.equal(v.rows(3), v.rows(3)),
    "allclose": lambda v: torch.allclose(v.rows(3), v.rows(3)),
    "len of a list": lambda v: [int(x) for x in v.whole(4)],
}
"""What a call is named -> the call."""
