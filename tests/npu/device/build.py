"""Builds the device of the emulated NPU, against the headers of the torch that is installed."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

SOURCES = sorted(Path(__file__).parent.glob("*.cpp"), key=lambda path: -path.stat().st_size)
LIBRARY = "emulated_npu_device.so"
FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Werror")


def torch_folder() -> Path:
    (folder,) = find_spec("torch").submodule_search_locations
    return Path(folder)


def build(folder: Path) -> Path:
    """Compiles the library into `folder`; returns its path. Takes about a minute."""
    compiler = os.environ.get("CXX", "g++").split()
    torch = torch_folder()
    include = (
        torch / "include",
        torch / "include" / "torch" / "csrc" / "api" / "include",
        sysconfig.get_path("include"),
    )

    def compile_source(source: Path) -> str:
        target = str(folder / f"{source.stem}.o")
        headers = [option for path in include for option in ("-isystem", str(path))]
        subprocess.run([*compiler, *FLAGS, *headers, "-c", str(source), "-o", target], check=True, timeout=240)
        return target

    with ThreadPoolExecutor(2) as compilers:
        objects = list(compilers.map(compile_source, SOURCES))
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{torch / 'lib'}"]
    library = folder / LIBRARY
    subprocess.run(
        [*compiler, "-shared", "-pthread", *objects, *libraries, "-o", str(library)], check=True, timeout=120
    )
    return library


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process puts anything into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_once(folder: Path, kept: Path) -> Path:
    """As `build`, unless another process has done or does it, or a run before had the same sources.

    kept: the folder where runs leave their library for later ones.
    """
    with alone(folder):
        library = folder / LIBRARY
        if library.exists():
            return library
        same = kept / f"{_fingerprint()}.so"
        if not same.exists():
            unfinished = shutil.copy(build(folder), kept / f"{os.getpid()}.unfinished")
            os.replace(unfinished, same)
        return Path(shutil.copy(same, library))


def _fingerprint() -> str:
    """Of all that makes the library what it is."""
    known = [version("torch"), sysconfig.get_path("include"), os.environ.get("CXX", "g++"), *FLAGS]
    for source in sorted(Path(__file__).parent.glob("*.[ch]*")):
        known += [source.name, source.read_text()]
    return hashlib.sha256("\0".join(known).encode()).hexdigest()[:16]
