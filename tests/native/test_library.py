"""A library is used only if it is what the package was built with, and a layout only if every field is named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import asdict

from sglang_ascend_moe._host_kernels import Layout, Library
from sglang_ascend_moe.errors import ProtocolMismatch
from sglang_ascend_moe.native.library import native_layout
from sglang_ascend_moe.windows.layout import ExchangeParameters, Regions, plan_window

HEADERS = Path(__file__).resolve().parents[2] / "kernels" / "include"
LAYOUT = plan_window(ExchangeParameters(ranks=3, num_experts=6, hidden=32, max_tokens=5, topk=2, verify=True))
FIELDS = {
    "ranks": 3, "experts": 6, "hidden": 32, "topk": 2, "max_tokens": 5, "slots": 1, "element": 0, "distinct_topk": 0,
    "count_units": LAYOUT.count_units, "verify": 1, "quantised": 0, "granting": 0, "counted": 6,
    "capacity": LAYOUT.capacity, "expert_rows": 0,
    "row_bytes": 64, "out_row_bytes": 64, "mailbox_bytes": LAYOUT.mailbox_bytes, "total_bytes": LAYOUT.total_bytes,
    **asdict(LAYOUT.offsets),
}  # fmt: skip


def compiled(folder: Path, version: str) -> str:
    """A library that has this ABI version, and nothing else of an ABI."""
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text(f'#include "exchange.h"\nuint32_t exchange_abi_version(void) {{ return {version}; }}\n')
    compiler = os.environ.get("CXX", "g++").split()
    command = [*compiler, "-shared", "-fPIC", f"-I{HEADERS}", str(source), "-o", str(library)]
    subprocess.run(command, check=True, timeout=60)
    return str(library)


def test_kernels_of_another_abi_are_refused(tmp_path: Path) -> None:
    path = compiled(tmp_path, "EXCHANGE_ABI_VERSION + 1")
    with pytest.raises(ProtocolMismatch, match=r"kernels have ABI \d+, the package expects \d+; rebuild the kernels"):
        Library(path)


def test_a_function_that_a_library_lacks_is_named(tmp_path: Path) -> None:
    path = compiled(tmp_path, "EXCHANGE_ABI_VERSION")
    with pytest.raises(OSError, match="exchange_select_kernels"):
        Library(path)


def test_a_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"kernels\.so"):
        Library(str(tmp_path / "kernels.so"))


def test_a_layout_has_the_numbers_of_the_window() -> None:
    described = native_layout(LAYOUT)
    assert {name: getattr(described, name) for name in FIELDS} == FIELDS
    assert bytes(described) == bytes(Layout(**FIELDS))


@pytest.mark.parametrize("name", ["ranks", "quantised", "total_bytes", *Regions.__struct_fields__])
def test_a_layout_that_lacks_a_field_is_refused(name: str) -> None:
    fields = {key: value for key, value in FIELDS.items() if key != name}
    with pytest.raises(TypeError, match=f"'{name}' of a layout is missing"):
        Layout(**fields)


@pytest.mark.parametrize("name", ["num_experts", "abi_version"])
def test_a_layout_with_another_field_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"no field '{name}'"):
        Layout(**FIELDS, **{name: 1})


@pytest.mark.parametrize(
    ("name", "value"), [("ranks", 2**32), ("hidden", -1), ("capacity", 2**64), ("rows", -1)], ids=lambda part: str(part)
)
def test_a_number_that_does_not_fit_its_field_is_refused(name: str, value: int) -> None:
    with pytest.raises(OverflowError):
        Layout(**{**FIELDS, name: value})
