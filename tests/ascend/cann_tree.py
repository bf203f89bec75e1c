"""A tree that looks like an installation of CANN, and a torch_npu, for tests of `ascend-moe build-kernels`.

The compilers are scripts that write down how they were called and compile nothing of ours; CMake drives them as it does
the real ones.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

ASC_MODULES = {
    "CMakeDetermineASCCompiler.cmake": """
find_program(CMAKE_ASC_COMPILER NAMES bisheng)
set(CMAKE_ASC_SOURCE_FILE_EXTENSIONS asc)
set(CMAKE_ASC_COMPILER_ENV_VAR "ASC")
configure_file(${CMAKE_CURRENT_LIST_DIR}/CMakeASCCompiler.cmake.in ${CMAKE_PLATFORM_INFO_DIR}/CMakeASCCompiler.cmake)
""",
    "CMakeASCCompiler.cmake.in": """
set(CMAKE_ASC_COMPILER "@CMAKE_ASC_COMPILER@")
set(CMAKE_ASC_COMPILER_LOADED 1)
set(CMAKE_ASC_COMPILER_ENV_VAR "ASC")
set(CMAKE_ASC_SOURCE_FILE_EXTENSIONS asc)
set(CMAKE_ASC_OUTPUT_EXTENSION .o)
""",
    "CMakeTestASCCompiler.cmake": "set(CMAKE_ASC_COMPILER_WORKS 1)",
    "CMakeASCInformation.cmake": """
include(CMakeCommonLanguageInclude)
set(CMAKE_INCLUDE_FLAG_ASC "-I")
set(CMAKE_ASC_COMPILE_OBJECT
    "<CMAKE_ASC_COMPILER> --npu-arch=${CMAKE_ASC_ARCHITECTURES} <DEFINES> <INCLUDES> <FLAGS> -o <OBJECT> -c <SOURCE>")
set(CMAKE_ASC_CREATE_SHARED_LIBRARY
    "<CMAKE_ASC_COMPILER> <LANGUAGE_COMPILE_FLAGS> <LINK_FLAGS> -shared -o <TARGET> <OBJECTS> <LINK_LIBRARIES>")
set(CMAKE_ASC_INFORMATION_LOADED 1)
""",
}
CONFIG = 'list(APPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}/asc_modules")'
# Compiles an empty source instead of one of the kernels, so that only the calls are tested here.
COMPILER = """#!{python}
import subprocess, sys
arguments = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(" ".join([{name!r}, *arguments]) + "\\n")
if {fails!r} and any(argument.endswith({fails!r}) for argument in arguments):
    print({complaint!r}, file=sys.stderr)
    sys.exit(1)
ours = ("/launch.asc", "/device_session.cpp", "/exchange_library.cpp", "/watcher.cpp", "/routing.cpp", "/segments.cpp",
        "/torch_binding.cpp", "/expert_products.cpp")
arguments = [{empty!r} if argument.endswith(ours) else argument for argument in arguments]
sys.exit(subprocess.run([{real!r}, *(a for a in arguments if not a.startswith("--npu-arch"))]).returncode)
"""


class Tree(NamedTuple):
    """`home`: ASCEND_HOME_PATH; `packages`: a folder with a torch_npu for Python; `log`: what the compilers wrote."""

    home: Path
    packages: Path
    compiler: Path
    log: Path

    def calls(self, source: str) -> list[str]:
        """How a source, or the library that ends so, was compiled or linked: the words of the call."""
        found = [line.split() for line in self.log.read_text().splitlines()]
        (call,) = [
            words
            for words in found
            if any(words[words.index(flag) + 1].endswith(source) for flag in ("-o", "-c") if flag in words)
        ]
        return call


def make_tree(folder: Path, *, fails: str = "", complaint: str = "") -> Tree:
    """`fails`: the end of the name of a source that its compiler refuses, with `complaint`."""
    machine = f"{platform.machine()}-linux"
    tree = Tree(folder / "cann", folder / "packages", folder / "bin" / "g++", folder / "calls.log")
    modules = tree.home / "compiler/tikcpp/ascendc_kernel_cmake"
    (modules / "asc_modules").mkdir(parents=True)
    for name, text in ASC_MODULES.items():
        (modules / "asc_modules" / name).write_text(text)
    (modules / "asc-config.cmake").write_text(CONFIG)
    for place in ("include/acl", "lib64", f"{machine}/ccec_compiler/bin"):
        (tree.home / place).mkdir(parents=True)
    (tree.home / machine / "ascend_toolkit_install.info").write_text(
        "package_name=Ascend-cann-toolkit\nversion=9.1.0\n"
    )
    (tree.home / "include/acl/acl.h").write_text("")
    (tree.home / "lib64/libascendcl.so").write_bytes(b"")
    npu = tree.packages / "torch_npu"
    for place in ("include", "lib"):
        (npu / place).mkdir(parents=True)
    (npu / "__init__.py").write_text("raise ImportError('not to be imported')\n")
    empty = folder / "empty.cpp"
    empty.write_text("")
    tree.compiler.parent.mkdir()
    real = shutil.which("g++")
    for library in (tree.home / "lib64/libascendcl.so", npu / "lib/libtorch_npu.so"):
        os.system(f"{real} -shared -o {library} {empty}")
    for path in (tree.home / machine / "ccec_compiler/bin/bisheng", tree.compiler):
        text = COMPILER.format(
            python=sys.executable, log=str(tree.log), name=path.name, fails=fails, complaint=complaint,
            empty=str(empty), real=real,
        )  # fmt: skip
        path.write_text(text)
        path.chmod(0o755)
    return tree
