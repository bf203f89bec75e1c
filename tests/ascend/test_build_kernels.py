"""`ascend-moe build-kernels` over a tree that looks like CANN; no compiler of CANN is involved."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sglang_ascend_moe
from sglang_ascend_moe._host_kernels import Library
from sglang_ascend_moe.launch import build_kernels, cann
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, OK
from tests.packaging.source_tree import ROOT

from .cann_tree import Tree, make_tree


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are installed: a copy of the package's place in a checkout, not the place itself."""
    folder = tmp_path / "checkout" / "sglang_ascend_moe"
    folder.mkdir(parents=True)
    (folder.parent / "kernels").symlink_to(ROOT / "kernels")
    monkeypatch.setattr(sglang_ascend_moe, "__file__", str(folder / "__init__.py"))
    return folder


def use(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASCEND_HOME_PATH", str(tree.home))
    monkeypatch.setenv("CXX", str(tree.compiler))
    monkeypatch.syspath_prepend(str(tree.packages))


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without CANN, whatever this one has."""
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.delenv("ASCEND_TOOLKIT_HOME", raising=False)
    monkeypatch.setattr(build_kernels, "find_cann", lambda: cann.find_cann(tmp_path))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


@pytest.mark.usefixtures("nowhere", "package")
def test_without_cann_it_says_what_is_missing_and_where_it_looked(capsys):
    assert build_kernels.main([]) == CANNOT
    said = capsys.readouterr().err
    assert "missing: CANN" in said
    assert "ASCEND_HOME_PATH" in said
    assert "/usr/local/Ascend/cann" in said
    assert "missing: the Python package torch_npu" in said


PIECES = {
    "x86_64-linux/ccec_compiler/bin/bisheng": "bisheng",
    "compiler/tikcpp/ascendc_kernel_cmake/asc-config.cmake": "asc-config.cmake",
    "include/acl/acl.h": "acl/acl.h",
    "lib64/libascendcl.so": "libascendcl.so",
}


@pytest.mark.parametrize(("piece", "named"), PIECES.items(), ids=PIECES.values())
def test_a_piece_of_cann_that_is_missing_is_named(tmp_path, monkeypatch, package, capsys, piece, named):
    tree = make_tree(tmp_path)
    use(tree, monkeypatch)
    monkeypatch.setattr(cann.platform, "machine", lambda: "x86_64")
    (tree.home / piece.replace("x86_64", cann.platform.machine())).unlink()
    assert build_kernels.main(["--check"]) == CANNOT
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("missing")]
    assert named in line
    assert not list(package.iterdir())


@pytest.mark.usefixtures("package")
def test_an_older_cann_is_named_with_its_version(tmp_path, monkeypatch, capsys):
    tree = make_tree(tmp_path)
    use(tree, monkeypatch)
    info = tree.home / f"{cann.platform.machine()}-linux" / "ascend_toolkit_install.info"
    info.write_text(info.read_text().replace("9.1.0", "8.5.0"))
    assert build_kernels.main(["--check"]) == CANNOT
    assert f"missing: CANN 9.0 (that in {tree.home} is 8.5.0)" in capsys.readouterr().err


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(("version", "without"), [("9.0.0", True), ("9.0.1", True), ("9.1.0", False)])
def test_a_compiler_that_lacks_schedmode_does_not_see_it(tmp_path, monkeypatch, version, without):
    tree = make_tree(tmp_path)
    use(tree, monkeypatch)
    info = tree.home / f"{cann.platform.machine()}-linux" / "ascend_toolkit_install.info"
    info.write_text(info.read_text().replace("9.1.0", version))
    assert build_kernels.main([]) == OK
    assert ("-DEXCHANGE_WITHOUT_SCHEDMODE" in tree.calls("/ascend/device/launch.asc")) is without


def test_with_everything_there_a_check_says_so_and_builds_nothing(tmp_path, monkeypatch, package, capsys):
    use(make_tree(tmp_path), monkeypatch)
    assert build_kernels.main(["--check"]) == OK
    said = capsys.readouterr().out
    assert "CANN 9.1.0" in said
    assert "dav-2201 (Atlas A2 and A3)" in said
    assert not list(package.iterdir())


def test_libraries_are_built_by_the_compilers_of_cann_and_of_the_host_and_installed(tmp_path, monkeypatch, package):
    tree = make_tree(tmp_path)
    use(tree, monkeypatch)
    assert build_kernels.main([]) == OK
    assert sorted(path.name for path in package.iterdir()) == sorted(build_kernels.LIBRARIES)

    kernels = tree.calls("/ascend/device/launch.asc")
    assert kernels[0] == "bisheng"
    assert "--npu-arch=dav-2201" in kernels
    assert "-fPIC" in kernels
    assert any(word.endswith("/kernels/include") for word in kernels)

    host = tree.calls("/ascend/device/exchange_library.cpp")
    assert host[0] == "g++"
    assert set((ROOT / "kernels/flags.txt").read_text().split()) <= set(host)
    assert str(tree.home / "include") in host

    linked = tree.calls("_ascend_kernels.so")
    assert linked[0] == "bisheng"
    assert "-lascendcl" in linked
    assert f"-L{tree.home}/lib64" in linked

    torch = tree.calls("/ascend/device/torch_binding.cpp")
    assert str(tree.packages / "torch_npu/include") in torch
    assert any(word.startswith("-D_GLIBCXX_USE_CXX11_ABI=") for word in torch)
    assert {"-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_npu"} <= set(tree.calls("_ascend_torch.so"))


@pytest.mark.parametrize(
    ("source", "complaint"),
    [("launch.asc", "launch.asc:14:1: error: unknown type name '__schedmode__'"),
     ("torch_binding.cpp", "torch_binding.cpp:21: error: no member named 'RunOpApiV2'")],
    ids=["by CANN's compiler", "by the host's"],
)  # fmt: skip
def test_what_a_compiler_refuses_is_shown_in_its_words(tmp_path, monkeypatch, package, capsys, source, complaint):
    use(make_tree(tmp_path, fails=source, complaint=complaint), monkeypatch)
    assert build_kernels.main([]) == CHECK_FAILED
    said = capsys.readouterr().err
    assert complaint in said
    assert "build-kernels: failed with exit code" in said
    assert not list(package.iterdir())


def configure_host(build: Path) -> str:
    """Returns cmake, to build with."""
    command = [build_kernels._cmake(), "-S", ROOT / "kernels", "-B", build, "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    subprocess.run([*map(str, command), f"-DPython3_EXECUTABLE={sys.executable}"], check=True, capture_output=True)
    return str(command[0])


def test_cmake_builds_the_host_library_as_setup_py_does(tmp_path):
    configure_host(tmp_path)
    commands = json.loads((tmp_path / "compile_commands.json").read_text())
    flags = (ROOT / "kernels/flags.txt").read_text().split()
    assert {Path(command["file"]) for command in commands} == {
        path for folder in ("host", "python") for path in (ROOT / "kernels" / folder).glob("*.cpp")
    }
    for command in commands:
        words = command["command"].split()
        assert [flag for flag in flags if flag not in words] == []
        assert {word for word in words if word.startswith(("-O", "-std", "-f"))} <= set(flags)


@pytest.mark.nightly
def test_cmake_builds_a_host_library_that_loads(tmp_path):
    cmake = configure_host(tmp_path)
    subprocess.run([cmake, "--build", str(tmp_path), "--parallel", "2"], check=True, capture_output=True)
    library = str(tmp_path / "_host_kernels.so")
    assert Library(library).path == library


LAUNCH = re.compile(r"(\w+)<<<launch\.cores, 0, stream>>>\(")


def test_what_only_canns_compiler_can_compile_is_right_but_for_its_own_words(tmp_path):
    """The unit with the launches, its launches made calls and its qualifiers nothing, for the host's compiler."""
    device = ROOT / "kernels/ascend/device"
    source = (device / "launch.asc").read_text()
    assert len(LAUNCH.findall(source)) == 5
    called = LAUNCH.sub(r"static_cast<void>(stream), \1(", source)
    (tmp_path / "launch.cpp").write_text(called)
    folders = ("include", "ascend", "ascend/host_model", "ascend/device")
    include = [f"-I{ROOT / 'kernels' / folder}" for folder in folders]
    words = ["-DEXCHANGE_WITHOUT_SCHEDMODE", "-D__mix__(cube, vector)="]
    command = ["g++", "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *words, *include]
    done = subprocess.run([*command, str(tmp_path / "launch.cpp")], capture_output=True, text=True)
    assert done.stderr == ""
