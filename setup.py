"""Finds the packages and builds the host kernels. Everything else is in pyproject.toml."""

import os
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

COMPILE_FLAGS = Path("kernels/flags.txt").read_text().split()
# Folders of the repository that install as packages inside sglang_ascend_moe.
MAPPED_FOLDERS = ("launch", "graph_capture")
# Sources that install with it, for `ascend-moe build-kernels` to build on a machine with NPUs.
KERNEL_FOLDERS = ("include", "host", "python", "ascend", "ascend/launch", "ascend/device")


class BuildSharedLibrary(build_ext):
    """The library is loaded by its path and imported as well; of Python it uses the stable ABI only."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extensions(self) -> None:
        # Not the compiler and flags that Python itself was built with: the results must not depend on them.
        compiler = os.environ.get("CXX", "g++").split()
        self.compiler.set_executables(
            compiler_so=compiler,
            compiler_so_cxx=compiler,
            linker_so=[*compiler, "-shared"],
            linker_so_cxx=[*compiler, "-shared"],
        )
        super().build_extensions()


class PlatformWheel(bdist_wheel):
    """One wheel serves every Python version of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def packages() -> list[str]:
    found = find_packages(include=["sglang_ascend_moe", "sglang_ascend_moe.*"])
    for folder in MAPPED_FOLDERS:
        if Path(folder, "__init__.py").is_file():
            inner = find_packages(folder)
            found += [f"sglang_ascend_moe.{name}" for name in (folder, *(f"{folder}.{package}" for package in inner))]
    return found


class BuildPython(build_py):
    """Puts the sources of the kernels beside the package, which they are no part of: they hold no Python."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "sglang_ascend_moe", "kernels")
        sources = [Path("CMakeLists.txt"), Path("flags.txt")]
        for folder in KERNEL_FOLDERS:
            sources += [path.relative_to("kernels") for path in Path("kernels", folder).glob("*.*")]
        for source in sources:
            (target / source).parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str("kernels" / source), str(target / source))


setup(
    packages=packages(),
    ext_modules=[
        Extension(
            "sglang_ascend_moe._host_kernels",
            sources=sorted(map(str, [*Path("kernels/host").glob("*.cpp"), *Path("kernels/python").glob("*.cpp")])),
            depends=sorted(map(str, Path("kernels").rglob("*.h"))),
            include_dirs=["kernels/include", "kernels/host"],
            extra_compile_args=COMPILE_FLAGS,
            extra_link_args=["-pthread", "-ldl"],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildSharedLibrary, "build_py": BuildPython, "bdist_wheel": PlatformWheel},
)
