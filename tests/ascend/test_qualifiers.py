"""Qualifiers that only a device's compiler asks for, checked by clang over the kernels and the host model.

`__gm__` is an address space here, so that a pointer to global memory which lost it fits nowhere. `__aicore__` marks
functions of a device (of clang's HIP, which has half-precision numbers), which may not call one that lost it. What
CANN's compiler would say beyond that is not known.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from .host_model import KERNELS

SOURCES = ("combine.cpp", "dispatch.cpp", "device/announce.cpp")
"""Those with kernels, below `kernels/ascend`."""
FLAGS = ["-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-D__global__="]
ADDRESS_SPACES = ["-D__gm__=__attribute__((address_space(1)))", "-D__aicore__="]
if platform.machine() == "x86_64":
    ADDRESS_SPACES.append("-mavx512fp16")  # clang 14 has half-precision numbers only so
DEVICE_FUNCTIONS = [
    "-x", "hip", "--cuda-device-only", "--offload-arch=gfx900", "-nogpuinc", "-nogpulib", "-Wno-cuda-compat",
    "-Xclang", "-fcuda-allow-variadic-functions", "-D__gm__=", "-D__aicore__=__attribute__((device))",
    "-D__device__=__attribute__((device))", "-D__host__=__attribute__((host))",
    "-DMODEL_VARIABLE=__attribute__((device))",
]  # fmt: skip
UNIT = """#include <cstdlib>
#include <exception>
#include <new>
#include <typeinfo>
#ifdef __HIP__
__device__ void *operator new(size_t);
__device__ void *operator new(size_t, void *) noexcept;
__device__ void operator delete(void *) noexcept;
__device__ void operator delete(void *, size_t) noexcept;
__device__ void operator delete(void *, void *) noexcept;
#pragma clang force_cuda_host_device begin
#endif
#include "kernel_operator.h"
#ifdef __HIP__
#pragma clang force_cuda_host_device end
#endif
{kernels}
"""
"""The model belongs to host and device, the kernels to the device."""


def complaints(kernels: Path, folder: Path, words: list[str]) -> str:
    """What clang says about the kernels in the folder `kernels`."""
    unit = folder / "unit.cpp"
    unit.write_text(UNIT.format(kernels="\n".join(f'#include "{source}"' for source in SOURCES)))
    include = [f"-I{kernels / name}" for name in ("include", "ascend", "ascend/host_model", "ascend/device")]
    done = subprocess.run(["clang++", *FLAGS, *words, *include, str(unit)], capture_output=True, text=True)
    assert (done.returncode == 0) == (done.stderr == "")
    return done.stderr


def test_pointers_to_global_memory_are_marked(tmp_path: Path):
    assert complaints(KERNELS, tmp_path, ADDRESS_SPACES) == ""


def test_functions_that_kernels_call_are_marked(tmp_path: Path):
    assert complaints(KERNELS, tmp_path, DEVICE_FUNCTIONS) == ""


class Place(NamedTuple):
    """The `index`-th time that a file, below `kernels`, has a qualifier."""

    file: str
    word: str
    index: int

    def __str__(self) -> str:
        return f"{self.file}-{self.word.strip('_')}-{self.index}"


def begins(word: str, text: str) -> list[int]:
    """Where it qualifies something, once a line: neither an entry nor a lambda, which is what is around it."""
    return [found.start(1) for found in re.finditer(rf"(?m)^(?!#|extern).*?({word} )(?!{{)", text)]


def places(word: str) -> list[Place]:
    ascend = KERNELS / "ascend"
    files = [*ascend.glob("*.*"), ascend / "device/announce.cpp", KERNELS / "include/window_words.h"]
    return [
        Place(str(file.relative_to(KERNELS)), word, index)
        for file in sorted(files)
        for index in range(len(begins(word, file.read_text())))
    ]


AT_ONCE = 24
"""Every so many places on every change; all at night."""


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, id=str(place), marks=() if number % AT_ONCE == 0 else pytest.mark.nightly)
        for number, place in enumerate([*places("__gm__"), *places("__aicore__")])
    ],
)
def test_a_qualifier_that_is_missing_is_noticed(tmp_path: Path, place: Place):
    copies = tmp_path / "kernels"
    shutil.copytree(KERNELS, copies)
    file = copies / place.file
    text = file.read_text()
    at = begins(place.word, text)[place.index]
    file.write_text(text[:at] + text[at + len(place.word) + 1 :])
    words = ADDRESS_SPACES if place.word == "__gm__" else DEVICE_FUNCTIONS
    assert "error: " in complaints(copies, tmp_path, words)
