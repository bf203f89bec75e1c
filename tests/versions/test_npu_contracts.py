"""What our code for NPUs calls exists, with the parameters that it gives, in the packages that are installed beside it.

Wheels from the registry are read, and SGLang's installed sources; nothing of theirs is imported and no NPU is needed.
`npu_symbols` is the list of what is called.
"""

from __future__ import annotations

import ast
import ctypes
import importlib.util
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from sglang_ascend_moe.windows import memfabric
from tests.packaging.source_tree import ROOT
from tests.versions import npu_symbols
from tests.versions.npu_wheels import MEMFABRIC, TORCH_NPU, Wheel, definition, headers, wheel

SYMBOLS = [tuple(symbol) for symbol in npu_symbols.SYMBOLS]
RELEASES = {"torch_npu": list(TORCH_NPU.values()), "memfabric-hybrid": [MEMFABRIC], "sglang": [""]}
CASES = [(requirement, *symbol[1:]) for symbol in SYMBOLS for requirement in RELEASES[symbol[0]]]


def installed_module(dotted: str) -> ast.Module:
    """The source of a module that is installed, found without importing anything of it."""
    package, _, rest = dotted.partition(".")
    folder = Path(importlib.util.find_spec(package).origin).parent
    place = folder.joinpath(*rest.split(".")) if rest else folder
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return ast.parse(file.read_text())


def taken_by(found: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """The names of the parameters; those of a class are those of its constructor, or else its fields."""
    if isinstance(found, ast.ClassDef):
        made = definition(found, "__init__")
        if made is None:
            return [item.target.id for item in found.body if isinstance(item, ast.AnnAssign)]
        found = made
    arguments = found.args
    names = [item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def lacks(found: ast.AST | None, parameters: list[str]) -> str:
    """What of a definition is not as it is called; empty if it is."""
    if not isinstance(found, ast.FunctionDef | ast.ClassDef):
        return "is not defined"
    taken = taken_by(found)
    missing = [name for name in parameters if name not in taken]
    if missing:
        return f"takes {taken}, not {missing}"
    places = [taken.index(name) for name in parameters]
    return "" if places == sorted(places) else f"takes {taken}, in another order than {parameters}"


def named(parameter: object) -> str:
    return parameter if isinstance(parameter, str) else parameter[0]


@pytest.mark.parametrize(
    ("requirement", "module", "name", "parameters"), CASES, ids=[f"{case[0]} {case[1]}.{case[2]}" for case in CASES]
)
def test_what_is_called_is_there_with_its_parameters(request, requirement, module, name, parameters):
    if not requirement:
        assert lacks(definition(installed_module(module), name), [named(item) for item in parameters]) == ""
        return
    released = wheel(requirement, request.config)
    tree = released.module(module)
    if tree is None:
        assert called_in(released, name, len(parameters))
        return
    assert lacks(located(released, module, name), [named(item) for item in parameters]) == ""


def located(released: Wheel, module: str, name: str) -> ast.AST | None:
    """The definition of what a module has under a name, be it imported from another module of the wheel."""
    tree = released.module(module)
    if tree is None:
        return None
    if found := definition(tree, name):
        return found
    first, _, rest = name.partition(".")
    for node in ast.walk(tree):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == first:
                source = f"{module}.{node.module}" if node.level else node.module
                return located(released, source, f"{alias.name}.{rest}" if rest else alias.name)
    return None


def called_in(released: Wheel, name: str, count: int) -> bool:
    """Whether the package's own sources call a compiled function with so many arguments."""
    own = [file for file in released.names if file.endswith(".py") and name in released.text(file)]
    return any(
        isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(name)
        and len(node.args) + len(node.keywords) == count
        for file in own
        for node in ast.walk(released.tree(file))
    )


SOURCE = "class Run:\n    x: int\n    y: int\ndef f(a, b=1, *, c=2): pass\n"


@pytest.mark.parametrize(
    ("name", "parameters", "found"),
    [("f", ["a", "c"], True), ("f", ["c", "a"], False), ("f", ["d"], False), ("g", [], False), ("Run", ["y"], True)],
    ids=["fits", "another order", "gone", "not defined", "a field"],
)  # fmt: skip
def test_a_difference_is_found(name: str, parameters: list[str], found: bool):
    assert (lacks(definition(ast.parse(SOURCE), name), parameters) == "") == found


# Says of a C function what its result and its parameters are for a caller: p a pointer, v nothing, else the bytes.
KINDS = """
#include <array>
#include <cstddef>
#include "smem.h"
#include "smem_shm.h"
template <class T> constexpr char kind() {
    if constexpr (std::is_void_v<T>) return 'v';
    else if constexpr (std::is_pointer_v<T>) return 'p';
    else return '0' + sizeof(T);
}
template <class R, class... A> constexpr std::array<char, 1 + sizeof...(A)> kinds(R (*)(A...)) {
    return {kind<R>(), kind<A>()...};
}
"""


def kind_of(c_type: object) -> str:
    if c_type is None:
        return "v"
    return "p" if c_type in (ctypes.c_void_p, ctypes.c_char_p) else str(ctypes.sizeof(c_type))


def memfabric_checks(functions: dict, config: type[ctypes.Structure]) -> list[str]:
    """C++ that a compiler takes only if the functions and the structure of the header are as they are declared here."""
    checks = []
    for name, (result, parameters) in functions.items():
        expected = ", ".join(f"'{kind_of(item)}'" for item in (result, *parameters))
        checks.append(f'static_assert(kinds({name}) == std::array{{{expected}}}, "{name}");')
    checks.append(f"static_assert(sizeof(smem_shm_config_t) == {ctypes.sizeof(config)});")
    theirs = ("shmInitTimeout", "shmCreateTimeout", "controlOperationTimeout", "startConfigStoreServer", "flags")
    for field, (mine, _) in zip(theirs, config._fields_, strict=True):
        checks.append(f"static_assert(offsetof(smem_shm_config_t, {field}) == {getattr(config, mine).offset});")
    return checks


def accepted(include: Path, folder: Path, checks: list[str]) -> str:
    """What the compiler says against the checks; empty if nothing."""
    source = folder / "contract.cpp"
    source.write_text(KINDS + "\n".join(checks))
    command = ["g++", "-std=c++20", "-fsyntax-only", f"-I{include / 'smem/host'}", str(source)]
    return subprocess.run(command, capture_output=True, text=True).stderr


@pytest.fixture
def memfabric_headers(request, tmp_path) -> Path:
    return wheel(MEMFABRIC, request.config).extract("memfabric_hybrid/include/", tmp_path)


def test_functions_of_memfabric_have_the_types_that_they_are_called_with(memfabric_headers, tmp_path):
    assert accepted(memfabric_headers, tmp_path, memfabric_checks(memfabric.FUNCTIONS, memfabric.ShmConfig)) == ""


def test_another_type_of_a_function_of_memfabric_would_be_found(memfabric_headers, tmp_path):
    changed = {"smem_init": (ctypes.c_int32, (ctypes.c_uint64,))}
    assert "smem_init" in accepted(memfabric_headers, tmp_path, memfabric_checks(changed, memfabric.ShmConfig))


DEVICE = ROOT / "kernels/ascend/device"
SOURCES_OF_TORCH = (DEVICE / "torch_binding.cpp", DEVICE / "expert_products.cpp")


def compile_binding(version: str, config: pytest.Config, folder: Path) -> str:
    """What a compiler says against the operators for torch_npu, with its headers and those of the installed torch."""
    include = headers(version, config, folder)
    torch = Path(importlib.util.find_spec("torch").origin).parent / "include"
    system = [torch, torch / "torch/csrc/api/include", include, include / "third_party/acl/inc"]
    command = [
        "g++", *(ROOT / "kernels/flags.txt").read_text().split(), "-fsyntax-only", f"-I{ROOT / 'kernels/include'}",
        *(word for path in system for word in ("-isystem", str(path))),
        *map(str, SOURCES_OF_TORCH),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True).stderr


def test_the_torch_library_compiles_against_torch_npu(request, tmp_path):
    assert compile_binding("torch 2.14", request.config, tmp_path) == ""


@pytest.mark.nightly
def test_the_torch_library_compiles_against_the_older_torch_npu(request, tmp_path):
    assert compile_binding("torch 2.13", request.config, tmp_path) == ""


@pytest.mark.nightly
@pytest.mark.parametrize("version", TORCH_NPU)
def test_torch_npu_exports_the_functions_of_c_that_the_torch_library_calls(request, version, tmp_path):
    wheel(TORCH_NPU[version], request.config).extract("torch_npu/lib/libtorch_npu.so", tmp_path)
    library = tmp_path / "torch_npu/lib/libtorch_npu.so"
    exported = subprocess.run(
        ["nm", "-DC", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    for called in ("c10_npu::getCurrentNPUStream(signed char)", "c10_npu::NPUStream::stream(bool) const",
                   "at_npu::native::OpCommand::RunOpApiV2(", "GetOpApiFuncAddr(char const*)",
                   "at_npu::native::get_npu_format(at::Tensor const&)",
                   "at_npu::native::get_npu_storage_sizes(at::Tensor const&)"):  # fmt: skip
        assert called in exported
    strings = library.read_bytes()
    assert [name for name in named_functions() if name.encode() + b"\0" not in strings] == []


# Against the types with which torch_npu calls what makes and gives back descriptions of tensors.
SAME_TYPES = """
#include "op_plugin/include/npu_cpp_extension.h"
#include "operator_functions.h"
using namespace ascend_torch;
static_assert(std::is_same_v<CreateTensor, _aclCreateTensor>);
static_assert(std::is_same_v<CreateTensorList, _aclCreateTensorList>);
static_assert(std::is_same_v<DestroyTensor, _aclDestroyTensor>);
static_assert(std::is_same_v<DestroyTensorList, _aclDestroyTensorList>);
static_assert(std::is_same_v<LaunchOperator, OpApiFunc>);
static_assert(std::is_same_v<decltype(GetOpApiFuncAddr), void *(const char *)>);
"""
# How a header of torch_npu tells which torch it is for.
TORCHES = {"torch 2.14": "V2R14", "torch 2.13": "V2R13"}


@pytest.mark.nightly
@pytest.mark.parametrize("version", TORCH_NPU)
def test_functions_of_operators_have_the_types_with_which_torch_npu_calls_them(request, version, tmp_path):
    include = headers(version, request.config, tmp_path)
    source = tmp_path / "types.cpp"
    source.write_text(SAME_TYPES)
    torch = Path(importlib.util.find_spec("torch").origin).parent / "include"
    system = [
        torch, torch / "torch/csrc/api/include", Path(sysconfig.get_path("include")), include,
        include / "third_party/op-plugin", include / "third_party/acl/inc",
    ]  # fmt: skip
    command = [
        "g++", "-std=c++20", "-fsyntax-only", f"-DCURRENT_VERSION={TORCHES[version]}", f"-I{DEVICE}",
        *(word for path in system for word in ("-isystem", str(path))), str(source),
    ]  # fmt: skip
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""


def named_functions() -> list[str]:
    """Those of CANN's operators, which are looked for by name."""
    return sorted(set(re.findall(r'"(acl(?:nn|Create|Destroy)\w*)"', SOURCES_OF_TORCH[1].read_text())))


CANN_CALL = re.compile(r"\b(acl(?:rt|mdlRI)?[A-Z]\w+)\(")


def test_every_call_of_cann_is_in_the_list_of_the_page_and_in_its_headers(request, tmp_path):
    used = {
        call
        for path in (ROOT / "kernels/ascend/device").glob("*.[ch]*")
        for call in CANN_CALL.findall(path.read_text())
    }
    page = (ROOT / "docs/ascend.md").read_text()
    listed = {name for names in re.findall(r"^\| ((?:`acl\w+`(?:, )?)+) \|", page, flags=re.MULTILINE)
              for name in re.findall(r"\w+", names)}  # fmt: skip
    assert used | set(named_functions()) == listed
    declared = "".join(path.read_text() for path in headers("torch 2.14", request.config, tmp_path).rglob("acl*.h"))
    assert [call for call in used if not re.search(rf"\b{call}\(", declared)] == []
