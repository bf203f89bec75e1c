"""Every instruction set gives the same bits: rows, scales and sums."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import pytest

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.native.library import select_kernels
from tests.exchange.pool import Rank
from tests.exchange.scenario import Scenario
from tests.exchange.test_bit_exact import exchange_in_every_schedule
from tests.exchange.test_int8 import exchange_quantised

REPOSITORY = Path(__file__).resolve().parents[2]
BITS = Path(__file__).with_name("row_kernel_bits.cpp")
WIDEST_FIRST = ["avx512", "avx2", "portable"] if platform.machine() == "x86_64" else ["portable"]


def available() -> list[str]:
    """What this processor has; the widest it has is the default, so everything from there on is there."""
    widest = select_kernels(None)
    return WIDEST_FIRST[WIDEST_FIRST.index(widest) :]


def with_kernels(rank: Rank, name: str, scenario: Scenario) -> None:
    try:
        assert select_kernels(name) == name
        exchange_in_every_schedule(rank, "windows", scenario)
        exchange_quantised(rank, scenario, verify=False)
    finally:
        select_kernels(None)


@pytest.mark.parametrize("hidden", [16, 48, 80, 512, 7168], ids=lambda hidden: f"hidden-{hidden}")
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("name", available())
def test_kernels_of_an_instruction_set_give_the_bits_of_the_reference(pools, name, dtype, hidden):
    pools.run(2, with_kernels, name, Scenario(hidden=hidden, topk=8, dtype=dtype, rows="special", weights="signed"))


def checksum(program: list[str], kernels: str) -> str:
    """Of what row kernels make of many rows, any bits at all among them."""
    return subprocess.run([*program, kernels], check=True, capture_output=True, text=True, timeout=120).stdout


def compiled(compiler: str, program: Path, *flags: str) -> str:
    sources = [BITS, *sorted((REPOSITORY / "kernels" / "host").glob("row_kernels*.cpp"))]
    includes = [f"-I{REPOSITORY / 'kernels' / folder}" for folder in ("include", "host")]
    rules = ("-std=c++20", "-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", *flags)
    subprocess.run([compiler, *rules, *includes, *map(str, sources), "-o", str(program)], check=True, timeout=120)
    return str(program)


def test_row_kernels_of_all_instruction_sets_agree_on_any_bits(tmp_path: Path):
    program = compiled(os.environ.get("CXX", "g++"), tmp_path / "row_kernel_bits")
    assert len({checksum([program], name) for name in available()}) == 1


@pytest.mark.nightly
def test_row_kernels_of_neon_give_the_bits_of_this_processor(tmp_path: Path):
    """In an emulator; needs the Debian packages g++-aarch64-linux-gnu and qemu-user."""
    here = compiled(os.environ.get("CXX", "g++"), tmp_path / "here")
    neon = compiled("aarch64-linux-gnu-g++", tmp_path / "neon", "-static")
    assert checksum(["qemu-aarch64", neon], "portable") == checksum([here], "portable")


def test_the_kernels_of_another_processor_are_refused():
    with pytest.raises(Unsupported, match="neon2048"):
        select_kernels("neon2048")
