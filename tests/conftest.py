"""Settings of the whole suite."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import settings

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.windows import layout
from tests.exchange.surface import ALWAYS_GRANTING
from tests.npu import emulated
from tests.npu.cann import build_cann
from tests.npu.cann.build_cann import Headers
from tests.npu.device import build
from tests.serving.leftovers import temporary_names
from tests.soak.growth import REPORTED
from tests.versions.npu_wheels import MEMFABRIC, OWN_TORCH, headers, wheel

# An example may wait for other processes: how long it takes says nothing about whether it is right.
settings.register_profile(
    "suite", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None, print_blob=True
)
settings.load_profile("suite")

TOGETHER = {
    "launch/disagg/test_deployed.py": "servers",
    "launch/disagg/test_deployed_on_npus.py": "servers",
    "launch/disagg/test_deployment_secrets.py": "servers",
    "launch/disagg/test_failures.py": "servers",
    "launch/disagg/test_soak.py": "servers",
    "launch/test_demo.py": "servers",
    "serving/test_one_server.py": "servers",
    "readme/test_servers.py": "servers",
    "examples/test_with_servers.py": "servers",
    "serving": "engines",
}
"""Folders and files whose tests share what takes long to make; those of servers also look at what is left behind."""
LONG = ("servers", "engines", "serving/launcher/test_failing_together.py")
"""What begins first, because it takes minutes: otherwise a worker would be busy with it when the other has ended."""

DIE_BYTES = 1 << 30
"""Of the emulated NPUs of servers."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cann",
        metavar="PATH",
        default=os.environ.get("ASCEND_HOME_PATH"),
        help="where CANN is installed; its CPU mode then runs the Ascend kernels as well",
    )
    parser.addoption(
        "--delayed", action="store_true", help="instructions of modelled NPU cores take effect late, in tests/ascend"
    )
    parser.addoption(
        "--granting", action="store_true", help="exchanges of any number of ranks grant places, in tests of one process"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.option.granting:
        layout.RENDEZVOUS_UNITS = ALWAYS_GRANTING


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Where the suite runs in several processes, the tests of a file stay together, or of those that share more."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0].removeprefix("tests/")
            return TOGETHER.get(path) or TOGETHER.get(str(PurePosixPath(path).parent), path)

        def _assign_work_unit(self, node: Any) -> None:
            for scope in LONG:
                if scope in self.workqueue:
                    self.workqueue.move_to_end(scope, last=False)
                    break
            super()._assign_work_unit(node)

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One of the run's own, in which nothing may be left when the run ends."""
    # A short name: those of sockets begin with it, and may have 107 characters.
    folder = tmp_path_factory.mktemp("t", numbered=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", None)
        # Of a library of SGLang's, which removes a folder that it makes itself only where Python ends as usual.
        patch.setenv("CUDA_TILE_TEMP_DIR", str(tmp_path_factory.mktemp("cuda-tile", numbered=False)))
        # Of torch's compiler, which makes its folder as soon as it is imported.
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor", numbered=False)))
        yield
    left = sorted(temporary_names(folder))
    assert left == [], f"left in the temporary directory: {left}"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny Qwen3-MoE checkpoint."""
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def device_library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The path of the library of the emulated NPU, which one process of the run builds where no earlier run has."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    return build.build_once(shared / "emulated-npu", request.config.cache.mkdir("emulated-npu"))


@pytest.fixture(scope="session")
def npu_headers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Headers:
    folder = tmp_path_factory.mktemp("npu-headers")
    torch_npu = headers(OWN_TORCH, request.config, folder)
    return Headers(torch_npu, wheel(MEMFABRIC, request.config).extract("memfabric_hybrid/include/", folder))


@pytest.fixture(scope="session")
def libraries(device_library: Path, npu_headers: Headers) -> Path:
    """The folder of the emulated NPU, and of all libraries that an exchange needs over it."""
    return build_cann.build_once(device_library, npu_headers)


@pytest.fixture(scope="session")
def npu_variables(libraries: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What makes emulated NPUs, with dies of DIE_BYTES, those of a process that is started with it."""
    settings = emulated.Settings(str(libraries / build.LIBRARY), DIE_BYTES, exchange_libraries=str(libraries))
    return emulated.environment(tmp_path_factory.mktemp("npu"), settings)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What processes held in long runs, and how that grew."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [line for report in reports for name, line in report.user_properties if name == REPORTED]
    if lines:
        terminalreporter.section(REPORTED)
    for line in lines:
        terminalreporter.write_line(line)
