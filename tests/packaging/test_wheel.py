"""The source distribution and the wheel built from it hold the whole package, and work where they are installed."""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.monitoring.monitoring_command import FILES
from sglang_ascend_moe.launch.tiny_model.model_sizes import TRAINED_FAMILIES
from tests.packaging.source_tree import PACKAGE, PACKAGE_FOLDERS, ROOT, modules

PROJECT_FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
LIBRARY = f"{PACKAGE}/_host_kernels.so"
# Tells type checkers that the package is annotated.
TYPED = f"{PACKAGE}/py.typed"
TYPES = f"{PACKAGE}/_host_kernels.pyi"
TRAINED = {f"{PACKAGE}/launch/tiny_model/{family}.safetensors" for family in TRAINED_FAMILIES}
MONITORING = {f"{PACKAGE}/launch/monitoring/{name}" for name in FILES}
ENTRY_POINTS = {
    ("console_scripts", "ascend-moe", "sglang_ascend_moe.launch.main:main"),
    ("sglang.srt.plugins", "ascend_moe", "sglang_ascend_moe.serving.plugin:register"),
    ("sglang.srt.platforms", "ascend_moe_host", "sglang_ascend_moe.serving.host_platform:activate"),
}


def run_python(*arguments: str, cwd: Path) -> str:
    result = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without network from the source distribution of a copy of the project."""
    source = tmp_path_factory.mktemp("source")
    built = ("__pycache__", "*.so", "*.egg-info")
    for folder in (*PACKAGE_FOLDERS, "kernels"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns(*built))
    for name in PROJECT_FILES:
        shutil.copy(ROOT / name, source)
    run_python("-m", "build", "--no-isolation", cwd=source)
    (found,) = (source / "dist").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel alone has been installed."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def kernel_sources() -> list[Path]:
    """What `ascend-moe build-kernels` builds from; the host model is for tests only."""
    kinds = ("*.cpp", "*.h", "*.asc", "*.txt")
    found = [path for kind in kinds for path in (ROOT / "kernels").rglob(kind)]
    return [path for path in found if "host_model" not in path.parts]


def test_wheel_holds_every_module_the_kernels_and_their_sources_data_and_that_it_is_typed(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {f"{PACKAGE}/{path.relative_to(ROOT)}" for path in kernel_sources()}
    expected = {LIBRARY, TYPED, TYPES, *TRAINED, *MONITORING, *sources}
    for name, path in modules().items():
        expected.add(name.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py"))
    assert names == expected


def test_wheel_serves_every_python_of_its_platform(wheel: Path):
    python, abi, platform = wheel.stem.split("-")[2:]
    assert (python, abi) == ("py3", "none")
    assert platform.startswith("linux_")


def test_wheel_carries_the_licence(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


def test_wheel_declares_its_entry_points(installed: Path):
    (distribution,) = metadata.distributions(path=[str(installed)])
    assert distribution.metadata["Name"] == "sglang-ascend-moe"
    assert {(point.group, point.name, point.value) for point in distribution.entry_points} == ENTRY_POINTS


def test_entry_points_of_the_wheel_are_functions(installed: Path):
    lines = ["import sys", f"sys.path.insert(0, {str(installed)!r})", "from importlib import import_module"]
    for _, _, value in sorted(ENTRY_POINTS):
        module, _, function = value.partition(":")
        lines += [
            f"module = import_module({module!r})",
            f"assert callable(module.{function})",
            "print(module.__file__)",
        ]
    loaded = run_python("-c", "\n".join(lines), cwd=installed.parent).split()
    assert len(loaded) == len(ENTRY_POINTS)
    assert all(Path(file).is_relative_to(installed) for file in loaded)


def test_exchange_of_the_wheel_loads_the_kernels_of_the_wheel(installed: Path):
    code = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "from sglang_ascend_moe import Exchange\n"
        "from sglang_ascend_moe.native.library import library\n"
        "print(library().path)"
    )
    assert Path(run_python("-c", code, cwd=installed.parent).strip()) == installed / LIBRARY
