"""Schemas and shapes of the emulated NPU's operators are those of torch_npu, read in its wheels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from tests.npu.operators.declaration import DECLARED, schemas
from tests.npu.operators.example_calls import Example, examples
from tests.npu.operators.modules import install_operators
from tests.npu.operators.wheel_shapes import SOURCE, shape_functions
from tests.versions.npu_wheels import TORCH_NPU, wheel

PIECE = 16
OF_SGL_KERNEL_NPU = ("batch_matmul_transpose", "cache_loc_update", "build_tree_kernel_efficient")
"""Of the namespace `npu`, from a library that no wheel of these has."""


@pytest.fixture(scope="module", autouse=True)
def operators():
    install_operators()


@pytest.fixture(scope="module", params=TORCH_NPU)
def version(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def libraries(request, version, tmp_path_factory) -> Callable[[str], bytes]:
    folder = tmp_path_factory.mktemp("torch_npu")

    def contents(name: str) -> bytes:
        path: Path = wheel(TORCH_NPU[version], request.config).extract(f"torch_npu/lib/{name}", folder)
        return path.read_bytes()

    return contents


def of(namespace: str) -> list[str]:
    """Schemas without their namespace."""
    found = [schema.partition("::")[2] for schema in schemas().values() if schema.startswith(f"{namespace}::")]
    assert found
    return found


def test_every_schema_has_an_operator():
    assert set(schemas()) == set(DECLARED)


def test_schemas_are_those_of_torch_npu(libraries):
    strings = set(libraries("libtorch_npu.so").split(b"\0"))
    ours = [schema for schema in of("npu") if schema.partition("(")[0] not in OF_SGL_KERNEL_NPU]
    assert [schema for schema in ours if schema.encode() not in strings] == []


def test_schemas_of_atb_are_in_its_library_piece_by_piece(libraries):
    """A compiler has written them as constants of so many bytes."""
    library = libraries("libop_plugin_atb.so")
    for schema in of("atb"):
        text = schema.encode()
        starts = [*range(0, len(text) - PIECE, PIECE), len(text) - PIECE]
        assert [text[start : start + PIECE] for start in starts if text[start : start + PIECE] not in library] == []


def test_another_schema_of_atb_would_be_found(libraries):
    library = libraries("libop_plugin_atb.so")
    (schema,) = [schema for schema in of("atb") if schema.startswith("_npu_paged_attention(")]
    changed = schema.replace("float scale_value", "Tensor scale_value").encode()
    assert not all(changed[start : start + PIECE] in library for start in range(0, len(changed) - PIECE, PIECE))


def described(result: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]


def without_values(example: Example) -> dict[str, Any]:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), example.arguments)


CASES = [(tokens, index) for tokens in (0, 1, 3) for index in range(len(examples(1)))]


def named(case: tuple[int, int]) -> str:
    example = examples(1)[case[1]]
    return f"{example.operator} {case[1]} of {case[0]}"


@pytest.fixture(scope="module")
def theirs(request) -> dict[str, Callable[..., Any]]:
    return shape_functions(wheel(TORCH_NPU["torch 2.14"], request.config).tree(SOURCE))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_shapes_are_those_that_torch_npu_says(theirs, case):
    example = examples(case[0])[case[1]]
    ours = getattr(torch.ops.npu, example.operator)(**without_values(example))
    # Theirs are called as the dispatcher does: by place, whatever they call their parameters.
    schema = DECLARED[f"npu::{example.operator}"].schema
    ahead = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    given = without_values(example)
    by_place = []
    for name in ahead:
        if name not in given:
            break
        by_place.append(given.pop(name))
    assert described(ours) == described(theirs[example.operator](*by_place, **given))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_what_is_computed_has_the_shapes_that_were_said(case):
    example = examples(case[0])[case[1]]
    operator = getattr(torch.ops.npu, example.operator)
    computed = operator(**example.arguments)
    assert described(computed) == described(operator(**without_values(example)))
    assert all(tensor.device.type == "cpu" for tensor in tree_leaves(computed) if isinstance(tensor, torch.Tensor))


def test_every_operator_that_returns_something_of_its_own_has_an_example():
    shown = {f"npu::{example.operator}" for example in examples(1)}
    plain = {name for name in DECLARED if name.startswith("npu::") and DECLARED[name].schema.returns}
    assert {name for name in plain - shown if not name.endswith(".out") and "_get_max_workspace" not in name} == {
        "npu::npu_format_cast",
        "npu::cache_loc_update",
    }
