"""Steps that no graph can replay, or that one would silently freeze. The line at fault ends with `# here`."""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F

from sglang_ascend_moe.windows.layout import ExchangeParameters, plan_window
from sglang_ascend_moe.windows.memfd import create_window

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([0, 1, 1])
LAYOUT = plan_window(ExchangeParameters(ranks=2, num_experts=4, hidden=16, max_tokens=2, topk=2))

VALUE = "hands a value to Python"
SHAPE = "whose shape depends on the values"
RANDOM = "draws random numbers"
ANOTHER_VALUE = "a graph would keep the first"
ANOTHER_TENSOR = "would keep reading the first"


class Refused(NamedTuple):
    """A step: what it is called, the operator and the words that its refusal has to name."""

    title: str
    step: Callable[[], object]
    operator: str
    words: str

    @property
    def line(self) -> int:
        """The line that is to be named."""
        lines, first = inspect.getsourcelines(self.step)
        (found,) = [number for number, text in enumerate(lines) if text.rstrip().endswith("# here")]
        return first + found


REFUSED: list[Refused] = []
AT_ONCE: list[Refused] = []
"""Refused where they are met, because no step can be followed any further."""


def refused(
    operator: str, words: str, cases: list[Refused] = REFUSED
) -> Callable[[Callable[[], object]], Callable[[], object]]:
    def add(step: Callable[[], object]) -> Callable[[], object]:
        cases.append(Refused(step.__name__.replace("_", " "), step, operator, words))
        return step

    return add


@refused("Tensor.item", VALUE)
def item():
    total = X.sum()
    return total.item()  # here


@refused("Tensor.cpu", VALUE)
def cpu():
    return (X + 1).cpu()  # here


@refused("Tensor.numpy", VALUE)
def numpy():
    return X.numpy()  # here


@refused("Tensor.__array__", VALUE)
def conversion_by_numpy():
    return np.asarray(X)  # here


@refused("Tensor.tolist", VALUE)
def tolist():
    return IDS.tolist()  # here


@refused("Tensor.__bool__", VALUE)
def condition():
    if (X > 0).any():  # here
        return X + 1
    return X


@refused("Tensor.__int__", VALUE)
def int_of_a_tensor():
    return int(IDS[0])  # here


@refused("Tensor.__float__", VALUE)
def float_of_a_tensor():
    return float(X[0, 0])  # here


@refused("Tensor.__index__", VALUE)
def range_over_a_tensor():
    return list(range(IDS[1]))  # here


@refused("aten._local_scalar_dense", VALUE)
def index_by_a_scalar_tensor():
    return X[IDS[1]]  # here


@refused("Tensor.__contains__", VALUE)
def membership():
    return 1.0 in X  # here


@refused("Tensor.__format__", VALUE)
def text_of_a_value():
    return f"{X[0, 0]:.2f}"  # here


@refused("aten.equal", VALUE)
def equal():
    return torch.equal(X, X)  # here


@refused("aten.allclose", VALUE)
def allclose():
    return torch.allclose(X, X)  # here


@refused("torch.tensor", VALUE)
def tensor_of_tensors():
    return torch.tensor([X.sum(), X.mean()])  # here


@refused("torch.as_tensor", VALUE)
def as_tensor_of_tensors():
    return torch.as_tensor([[X[0, 0]], [X[0, 1]]])  # here


@refused("torch.asarray", VALUE)
def asarray_of_tensors():
    return torch.asarray((X[0, 0], 1.0))  # here


@refused("Tensor.new_tensor", VALUE)
def new_tensor_of_tensors():
    return X.new_tensor(data=[X.sum()])  # here


@refused("Tensor.__getitem__", VALUE)
def index_by_a_list_of_tensors():
    return X[:, [IDS[1]]]  # here


@refused("torch.tensor_split", VALUE)
def split_at_positions_in_a_tensor():
    return torch.tensor_split(X, IDS)  # here


@refused("Tensor.tensor_split", VALUE)
def split_at_named_positions_in_a_tensor():
    return X.tensor_split(tensor_indices_or_sections=IDS)  # here


@refused("aten.nonzero", SHAPE)
def nonzero():
    return X.nonzero()  # here


@refused("aten.nonzero", SHAPE)
def where_with_one_argument():
    return torch.where(X > 0)  # here


@refused("aten.index", SHAPE)
def bool_index():
    return X[X > 0]  # here


@refused("aten.index_put_", SHAPE)
def assignment_of_several_values_to_a_bool_index():
    y = torch.zeros(3, 4)
    y[torch.tensor([True, False, True])] = X[:2]  # here
    return y


@refused("aten.masked_select", SHAPE)
def masked_select():
    return X.masked_select(X > 0)  # here


@refused("aten.repeat_interleave", SHAPE)
def repeat_interleave():
    return torch.repeat_interleave(X, IDS, dim=0)  # here


@refused("aten._unique2", SHAPE)
def unique():
    return torch.unique(X)  # here


@refused("aten.unique_consecutive", SHAPE)
def unique_consecutive():
    return torch.unique_consecutive(IDS)  # here


@refused("aten.bincount", SHAPE)
def bincount():
    return torch.bincount(IDS)  # here


@refused("aten.randn", RANDOM)
def randn():
    return torch.randn(3)  # here


@refused("aten.bernoulli_", RANDOM)
def bernoulli_in_place():
    return torch.empty(3).bernoulli_(0.5)  # here


@refused("aten.multinomial", RANDOM)
def multinomial():
    return torch.multinomial(X.abs(), 1)  # here


@refused("torch.dropout", RANDOM)
def dropout():
    return F.dropout(X, 0.5, training=True)  # here


@refused("torch.scaled_dot_product_attention", RANDOM)
def attention_with_dropout():
    return F.scaled_dot_product_attention(X[None], X[None], X[None], dropout_p=0.5)  # here


@refused("aten._to_copy", "copies between host and device")
def copy_to_another_device():
    return X.to("meta")  # here


@refused("aten.copy_", "copies between host and device")
def copy_into_another_device():
    return torch.empty(3, 4, device="meta").copy_(X)  # here


@refused(f"a window of {LAYOUT.total_bytes} bytes", "allocates a window")
def new_window():
    os.close(create_window(LAYOUT))  # here


_counter = iter(range(1000))
_state = [torch.zeros(3)]


@refused("aten.add", ANOTHER_VALUE)
def changing_scalar():
    return X + next(_counter)  # here


@refused("aten.slice", ANOTHER_VALUE)
def changing_number_of_a_slice():
    return X[: 1 + next(_counter) % 2]  # here


@refused("torch.tensor", ANOTHER_VALUE)
def changing_constant():
    return torch.tensor([next(_counter), 1])  # here


@refused("aten.lift_fresh", ANOTHER_VALUE)
def changing_constant_from_numpy():
    return torch.from_numpy(np.full(3, next(_counter)))  # here


@refused("aten.mul", ANOTHER_VALUE)
def number_drawn_by_python():
    return X * random.random()  # here


@refused("torch.zeros", ANOTHER_VALUE)
def changing_size():
    return torch.zeros(1 + next(_counter))  # here


@refused("aten.mul", ANOTHER_TENSOR)
def state_that_is_bound_anew():
    _state[0] = _state[0] * 0.5  # here


_buffers = [torch.zeros(3), torch.ones(3)]


@refused("aten.add", ANOTHER_TENSOR)
def buffers_in_turn():
    return _buffers[next(_counter) % 2] + 1  # here


@refused("torch.cos", "ran where torch.sin (aten.sin)")
def changing_path():
    functions = (torch.sin, torch.cos)
    return functions[_turn()](X)  # here


@refused("aten.neg", "did not in the run before")
def operator_that_is_added():
    y = X + 1
    if _turn():
        y = -y  # here
    return y


@refused("aten.abs", "not in a later run")
def operator_that_is_left_out():
    y = X + 1
    if not _turn():
        y = y.abs()  # here
    return y


_turns = iter([])


def _turn() -> int:
    """0 in the run that settles and in the first that is watched, 1 in the next."""
    global _turns
    value = next(_turns, None)
    if value is None:
        _turns = iter([0, 1])
        return 0
    return value


@refused("c10d.allreduce_", "communicates from the host")
def collective():
    dist.all_reduce(torch.ones(2))  # here


@refused("c10d.barrier", "communicates from the host")
def barrier():
    dist.barrier()  # here


@torch.library.custom_op("refused_steps::all_reduce", mutates_args=())
def all_reduce(x: torch.Tensor) -> torch.Tensor:
    """As SGLang has them: the collective is out of sight inside an operator of its own."""
    return x.clone()


@refused("refused_steps.all_reduce", "communicates from the host")
def collective_inside_an_operator():
    return torch.ops.refused_steps.all_reduce(X)  # here


NOT_DENSE = "that is sparse or nested"


@refused("aten._to_sparse", NOT_DENSE, AT_ONCE)
def sparse():
    return X.to_sparse()  # here


@refused("aten._nested_tensor_from_tensor_list", NOT_DENSE, AT_ONCE)
def nested():
    return torch._nested_tensor_from_tensor_list([X[0], X[1, :2]])  # here


@refused("aten.", NOT_DENSE, AT_ONCE)
def nested_and_jagged():
    return torch.nested.nested_tensor([X[0], X[1, :2]], layout=torch.jagged)  # here


_sparse = X.to_sparse()


@refused("aten.sum", NOT_DENSE, AT_ONCE)
def sparse_from_outside():
    return _sparse.sum()  # here


@refused("cond", "is given Python functions", AT_ONCE)
def function_chosen_by_a_value():
    return torch.cond(X.sum() > 0, lambda x: x + 1, lambda x: x - 1, (X,))  # here
