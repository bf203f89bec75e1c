"""Imports go one way: the table in docs/architecture.md is the rule, and the source files have to follow it."""

import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from sglang_ascend_moe.serving.host_platform import ONLY_FOR_ACCELERATORS
from tests.packaging.source_tree import PACKAGE, ROOT, imports, imports_of, is_within, modules

ARCHITECTURE = ROOT / "docs/architecture.md"
EVERYTHING_BELOW = "everything below"


def allowed_imports(text: str) -> dict[str, set[str]]:
    """Unit -> the units it may import, from the table of the architecture page; what a unit may import, it may import
    from the units below it too. Units are dotted names inside the package."""
    table = text.split("## Who may import whom")[1].split("```")[1]
    direct: dict[str, list[str]] = {}
    for line in table.splitlines():
        if "->" not in line:
            continue
        names, _, targets = line.rpartition("->")
        unit = names.split()[0].rstrip("/").removesuffix(".py").replace("/", ".")
        targets = targets.strip()
        direct[unit] = [] if targets == "nothing" else [name.strip() for name in targets.split(",")]
    order = list(direct)
    for position, unit in enumerate(order):
        if direct[unit] == [EVERYTHING_BELOW]:
            direct[unit] = order[position + 1 :]

    def closure(unit: str) -> set[str]:
        below = set(direct[unit])
        for name in direct[unit]:
            below |= closure(unit_of(name, direct))
        return below

    return {unit: closure(unit) for unit in direct}


def unit_of(name: str, units) -> str:
    """The unit that the dotted `name` (inside the package) belongs to: the longest one that contains it."""
    containing = [unit for unit in units if is_within(name, unit)]
    if not containing:
        pytest.fail(f"{PACKAGE}.{name} is not in the table of {ARCHITECTURE.relative_to(ROOT)}")
    return max(containing, key=len)


def inside(name: str) -> str:
    return name.removeprefix(PACKAGE).removeprefix(".") or "__init__"


def test_every_import_points_downwards():
    allowed = allowed_imports(ARCHITECTURE.read_text())
    upwards = []
    for found in imports():
        if not is_within(found.target, PACKAGE):
            continue
        source = unit_of(inside(found.module), allowed)
        target = unit_of(inside(found.target), allowed)
        permitted = target == source or any(is_within(inside(found.target), name) for name in allowed[source])
        if not permitted:
            upwards.append(f"{found.at}: {source} may not import {inside(found.target)}")
    assert upwards == []


def test_every_module_is_in_the_table():
    allowed = allowed_imports(ARCHITECTURE.read_text())
    assert {unit_of(inside(name), allowed) for name in modules()} <= set(allowed)


def test_modules_do_not_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for found in imports():
        if found.target in graph and found.target != found.module:
            graph[found.module].add(found.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("circle: " + " -> ".join(error.args[1]))


@pytest.mark.parametrize(
    ("statement", "target"),
    [
        ("import sglang_ascend_moe.launches", "sglang_ascend_moe.launches"),
        ("from sglang_ascend_moe import launches", "sglang_ascend_moe.launches"),
        ("from sglang_ascend_moe.launches import forward", "sglang_ascend_moe.launches"),
        ("from . import launches", "sglang_ascend_moe.launches"),
        ("from .launches import forward", "sglang_ascend_moe.launches"),
        ("def f():\n    from ..launches import forward", "launches"),
        ("importlib.import_module('sglang_ascend_moe.launches')", "sglang_ascend_moe.launches"),
    ],
)
def test_every_spelling_of_an_import_is_seen(statement: str, target: str):
    path = Path("sglang_ascend_moe/errors.py")
    found = list(imports_of("sglang_ascend_moe.errors", statement, path=path, known={"sglang_ascend_moe.launches"}))
    assert [item.target for item in found] == [target]


@pytest.mark.parametrize("module", ["windows.layout", "exchange.control.blocks"])
def test_pure_module_imports_neither_sglang_nor_torch_npu(module: str):
    reached, pending = set(), [f"{PACKAGE}.{module}"]
    while pending:
        name = pending.pop()
        if name in reached:
            continue
        reached.add(name)
        # Importing a module runs its packages as well; the public surface of the whole package is not its doing.
        parent = name.rpartition(".")[0]
        targets = [found.target for found in imports() if found.module == name]
        pending += [target for target in (*targets, parent) if target in modules() and target != PACKAGE]
        foreign = [target for target in targets if target.split(".")[0] in ("sglang", "torch_npu")]
        assert foreign == [], f"{name} imports {foreign}"
    assert f"{PACKAGE}.{module}" in modules()


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)


def test_importing_the_exchange_loads_neither_sglang_nor_torch_npu(tmp_path: Path):
    code = f"import sys, {PACKAGE}; print(sorted({{'sglang', 'torch_npu'}} & set(sys.modules)))"
    result = run_python(code, tmp_path)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


# What SGLang's attention kernels import from the distribution whose import name is `kernels`.
HUB_KERNELS = "from kernels import get_kernel, load_kernel"


def test_sglang_imports_from_the_repository_root_and_without_what_only_accelerators_use():
    asked = f"print([name for name in {ONLY_FOR_ACCELERATORS} if sys.modules.get(name)])"
    result = run_python(f"{HUB_KERNELS}\nimport sys, sglang.srt.server_args\n{asked}", ROOT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_package_called_kernels_in_the_current_folder_would_break_sglang(tmp_path: Path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").touch()
    result = run_python(HUB_KERNELS, tmp_path)
    assert re.search(r"ImportError: cannot import name 'get_kernel'", result.stderr)


def test_native_code_is_no_python_package():
    assert list((ROOT / "kernels").rglob("*.py")) == []
