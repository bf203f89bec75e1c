"""`ascend-moe build-kernels`: the libraries for Ascend devices, built with CANN and put beside the package.

No machine with CANN has run it yet.
"""

import argparse
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import sglang_ascend_moe
from sglang_ascend_moe.launch.cann import Cann, find_cann, first_file, places
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, OK

ARCHITECTURES = {"dav-2201": "Atlas A2 and A3"}
LEAST_CANN = (9, 0)
"""The first with cmake's language ASC."""
SCHEDMODE = (9, 1)
"""The first whose compiler knows `__schedmode__`."""
LIBRARIES = ("_ascend_kernels.so", "_ascend_torch.so")
_CMAKE_FILES = (
    "compiler/tikcpp/ascendc_kernel_cmake/asc-config.cmake",
    "tools/tikcpp/ascendc_kernel_cmake/asc-config.cmake",
)
_COMPILER = ("ccec_compiler/bin/bisheng", "compiler/ccec_compiler/bin/bisheng", "bin/bisheng")


class Missing(NamedTuple):
    """Something that a build needs: what it is, and what to do about it."""

    what: str
    remedy: str


def main(arguments: list[str]) -> int:
    """Build, and return an exit code: 1 if a compiler refuses the sources, 3 if something is not installed."""
    parsed = _parser().parse_args(arguments)
    cann = find_cann()
    missing = list(what_is_missing(cann))
    if cann is not None:
        print(f"CANN {cann.version} in {cann.home}, {platform.machine()}")
    print(f"architecture {parsed.npu_arch} ({ARCHITECTURES[parsed.npu_arch]})", flush=True)
    if missing or cann is None:
        for item in missing:
            print(f"missing: {item.what}\n    {item.remedy}", file=sys.stderr)
        return CANNOT
    if parsed.check:
        print("everything that a build needs is there")
        return OK
    with interrupts.raised(), ExitStack() as stack:
        build = parsed.build_folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ascend-moe-build-"))
        )
        failed = build_libraries(cann, parsed.npu_arch, Path(build), verbose=parsed.verbose)
        if failed is not None:
            if not parsed.verbose:
                print(failed.output, file=sys.stderr)
            print(
                f"build-kernels: failed with exit code {failed.exit_code}: {' '.join(failed.command)}", file=sys.stderr
            )
            return CHECK_FAILED
        for installed in install(Path(build)):
            print(f"installed {installed}")
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ascend-moe build-kernels",
        description="Builds the kernels for Ascend devices with CANN, and installs them beside the package.",
        epilog="Exit codes: 0 built, 1 a compiler refused the sources, 3 something that a build needs is not installed."
        " No machine with CANN has run this yet; docs/ascend.md says what to expect.",
    )
    parser.add_argument(
        "--npu-arch", choices=sorted(ARCHITECTURES), default="dav-2201", help="of the NPU (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="only say what is there and what is missing")
    parser.add_argument(
        "--build-folder",
        type=Path,
        metavar="DIR",
        help="build there and leave what was built (default: a temporary one)",
    )
    parser.add_argument("--verbose", action="store_true", help="show every command and what it prints")
    return parser


def what_is_missing(cann: Cann | None) -> Iterator[Missing]:
    """What a build needs and this machine has not."""
    if cann is None:
        looked = ", ".join(map(str, places()))
        yield Missing(
            f"CANN, the toolkit of Ascend (looked in {looked})",
            "install it and run `source /usr/local/Ascend/cann/set_env.sh`, or set ASCEND_HOME_PATH",
        )
    else:
        if cann.is_older_than(*LEAST_CANN):
            yield Missing(
                f"CANN {'.'.join(map(str, LEAST_CANN))} (that in {cann.home} is {cann.version})",
                "install a newer toolkit: cmake does not know the language ASC with an older one",
            )
        needed = {
            "bisheng, the compiler": _COMPILER if shutil.which("bisheng") is None else (),
            "asc-config.cmake, with which cmake knows the language ASC": _CMAKE_FILES,
            "acl/acl.h": ("include/acl/acl.h",),
            "libascendcl.so": ("lib64/libascendcl.so",),
        }
        for what, candidates in needed.items():
            if candidates and first_file(cann.home, *candidates) is None:
                yield Missing(
                    f"{what} (not at {' or '.join(candidates)} in {cann.home})",
                    "install the whole toolkit package of CANN 9.0 or later",
                )
    for package, remedy in (
        ("torch", "pip install sglang-ascend-moe"),
        ("torch_npu", "pip install the torch_npu that is made for this torch"),
    ):
        if _folder_of(package) is None:
            yield Missing(f"the Python package {package}", remedy)
    if _cmake() is None:
        yield Missing("cmake", "pip install cmake")
    if shutil.which("g++") is None:
        yield Missing("g++", "apt-get install g++")
    if not (sources() / "CMakeLists.txt").is_file():
        yield Missing(f"the sources of the kernels in {sources()}", "install the package again")


def sources() -> Path:
    """The folder with the sources of the kernels: beside the package where it is installed, above it in a checkout."""
    package = Path(sglang_ascend_moe.__file__).parent
    installed = package / "kernels"
    return installed if installed.is_dir() else package.parent / "kernels"


def commands(cann: Cann, architecture: str, build: Path) -> list[list[str]]:
    """What is run: cmake twice, to configure and to build."""
    import torch

    configure = [
        str(_cmake()), "-S", str(sources()), "-B", str(build), "-DCMAKE_BUILD_TYPE=Release", "-DEXCHANGE_ASCEND=ON",
        f"-DCMAKE_ASC_ARCHITECTURES={architecture}", f"-DTORCH_FOLDER={_folder_of('torch')}",
        f"-DTORCH_NPU_FOLDER={_folder_of('torch_npu')}", f"-DTORCH_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
        f"-DEXCHANGE_WITHOUT_SCHEDMODE={'ON' if cann.is_older_than(*SCHEDMODE) else 'OFF'}",
    ]  # fmt: skip
    if (compiler := first_file(cann.home, *_COMPILER)) is not None:
        configure.append(f"-DCMAKE_ASC_COMPILER={compiler}")
    return [configure, [str(_cmake()), "--build", str(build), "--verbose", "--parallel", "2"]]


class FailedBuild(NamedTuple):
    """A command that failed, and everything that it printed."""

    command: list[str]
    exit_code: int
    output: str


def build_libraries(cann: Cann, architecture: str, build: Path, *, verbose: bool) -> FailedBuild | None:
    """Builds into `build`. Returns what failed; None if nothing did."""
    environment = {**os.environ, "ASCEND_HOME_PATH": str(cann.home)}
    for command in commands(cann, architecture, build):
        if verbose:
            print("$", *command, flush=True)
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        if verbose:
            print(done.stdout, flush=True)
        if done.returncode != 0:
            return FailedBuild(command, done.returncode, done.stdout)
    return None


def install(build: Path) -> list[Path]:
    """Puts the libraries beside the package, each at once: processes that run keep those that they have loaded."""
    installed = []
    for library in LIBRARIES:
        target = Path(sglang_ascend_moe.__file__).parent / library
        fresh = target.with_suffix(".new")
        shutil.copy(build / library, fresh)
        os.replace(fresh, target)
        installed.append(target)
    return installed


def _folder_of(package: str) -> Path | None:
    """Where a Python package lies, without importing it."""
    found = importlib.util.find_spec(package)
    return None if found is None or found.origin is None else Path(found.origin).parent


def _cmake() -> str | None:
    beside = Path(sys.executable).with_name("cmake")
    return str(beside) if beside.is_file() else shutil.which("cmake")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
