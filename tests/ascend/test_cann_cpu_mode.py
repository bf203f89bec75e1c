"""The Ascend kernels with CANN's headers and on its CPU mode, where CANN is installed: `--cann PATH`. No test machine
has it so far."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from sglang_ascend_moe.native.library import native_layout
from sglang_ascend_moe.windows.layout import ExchangeParameters, WindowLayout, plan_window
from tests.exchange import reference
from tests.exchange.bits import require_same_bits
from tests.exchange.scenario import Scenario
from tests.exchange.test_int8 import quantise

from .host_model import KERNELS

HEADERS = (
    "tools/tikicpulib/lib/include", "include",
    *(f"asc/impl/{part}" for part in ("adv_api", "basic_api", "c_api", "micro_api", "simt_api", "utils")),
    "asc/include", "asc/include/adv_api/matmul",
    *(f"asc/include/{part}" for part in ("adv_api", "aicpu_api", "basic_api", "c_api", "interface")),
    *(f"asc/include/{part}" for part in ("micro_api", "simt_api", "tiling", "utils")),
)  # fmt: skip
"""Below CANN's folder, as `CMakeASCInformation.cmake` of asc-devkit 9.0.0 and 9.1.0 lists them for the CPU mode."""
PROJECT = Path(__file__).with_name("cann_cpu_mode")
SCENARIO = Scenario(tokens=(5,), experts_per_rank=11, hidden=16 * 37, topk=3, routing="sparse")
CORES = 4


@pytest.fixture(scope="module")
def cann(request: pytest.FixtureRequest) -> Path:
    folder = request.config.getoption("--cann")
    if folder is None:
        pytest.skip("not run: no CANN here (--cann PATH)")
    return Path(folder)


@pytest.mark.parametrize("source", ["dispatch.cpp", "combine.cpp", "device/announce.cpp"])
def test_kernels_fit_the_headers_of_cann(cann: Path, source: str):
    include = [f"-I{KERNELS / folder}" for folder in ("include", "ascend", "ascend/device")]
    system = [word for folder in HEADERS for word in ("-isystem", str(cann / folder))]
    words = ["-std=c++17", "-fsyntax-only", "-DASCENDC_CPU_DEBUG=1", "-D__NPU_ARCH__=2201", "-D__DAV_C220__"]
    command = ["g++", *words, *include, *system, str(KERNELS / "ascend" / source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def program(cann: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("cann-cpu-mode")
    configure = ["cmake", "-S", PROJECT, "-B", build, "-DCMAKE_ASC_RUN_MODE=cpu", f"-DCMAKE_PREFIX_PATH={cann}"]
    subprocess.run(configure, check=True, timeout=120)
    subprocess.run(["cmake", "--build", build], check=True, timeout=240)
    return build / "exchange_once"


def run(program: Path, folder: Path, quant: str | None) -> WindowLayout:
    """One exchange of one rank; leaves what it made in the folder."""
    given = SCENARIO.inputs(1)[0]
    layout = plan_window(
        ExchangeParameters(
            ranks=1,
            num_experts=SCENARIO.num_experts(1),
            hidden=SCENARIO.hidden,
            max_tokens=len(given.x),
            topk=SCENARIO.topk,
            quant=quant,
        )
    )
    (folder / "layout").write_bytes(bytes(native_layout(layout)))
    for name, tensor in (("x", given.x), ("ids", given.topk_ids), ("weights", given.topk_weights)):
        (folder / name).write_bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    subprocess.run([program, folder, str(CORES), str(len(given.x))], check=True, timeout=240)
    return layout


def load(path: Path, dtype: torch.dtype, width: int) -> torch.Tensor:
    return torch.frombuffer(bytearray(path.read_bytes()), dtype=dtype).view(-1, width)


def test_rows_and_sums_are_those_of_the_reference(program, tmp_path):
    run(program, tmp_path, None)
    inputs = SCENARIO.inputs(1)
    placed = reference.dispatch(inputs, SCENARIO.num_experts(1))
    total = len(placed[0].rows)
    rows = load(tmp_path / "rows", torch.bfloat16, SCENARIO.hidden)
    require_same_bits(rows[:total], placed[0].rows, "rows")
    expected = reference.combine(inputs, placed, [placed[0].rows])[0]
    require_same_bits(load(tmp_path / "result", torch.bfloat16, SCENARIO.hidden), expected, "result")


def test_int8_rows_are_within_one_step_of_the_host_kernels(program, tmp_path):
    run(program, tmp_path, "int8")
    values, scales = quantise(reference.dispatch(SCENARIO.inputs(1), SCENARIO.num_experts(1))[0].rows)
    rows = load(tmp_path / "rows", torch.int8, SCENARIO.hidden)[: len(values)]
    assert (rows.int() - values.int()).abs().max() <= 1
    packed = load(tmp_path / "scales", torch.float32, 1)[: len(scales), 0]
    assert torch.allclose(packed, scales, rtol=1e-6)
