"""The demo on emulated NPUs, as `make demo-npu` runs it."""

import subprocess
import sys

import pytest


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_the_demo_answers_on_emulated_npus_as_stock_sglang():
    command = [sys.executable, "-m", "tests.npu.emulated_demo"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "8 of 8 answers are right" in finished.stdout
