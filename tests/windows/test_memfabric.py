"""The real library of memfabric, on a machine without NPU: as far as it goes there, and what is said then."""

import os
import subprocess
import sys

import pytest

from tests.versions.npu_wheels import MEMFABRIC, wheel

PROGRAM = """
from sglang_ascend_moe.windows import memfabric
from sglang_ascend_moe.windows.device import Place
memfabric.open_pool(Place(0, [0], 0, 1 << 21, memfabric.meeting("127.0.0.1")))
"""


@pytest.mark.nightly
def test_it_connects_its_ranks_and_misses_the_driver(request, tmp_path):
    wheel(MEMFABRIC, request.config).extract("memfabric_hybrid/", tmp_path)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": path})
    said = done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "the current version of ascend driver does not support mf" in said
    assert "Unsupported: memfabric cannot connect 1 ranks over tcp://127.0.0.1:" in last
    assert "init hybm failed" in last
