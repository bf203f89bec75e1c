"""The examples that start servers ask them, print the answers, and end well.

Nightly: the tests of README start the same servers and engine.
"""

import pytest

from sglang_ascend_moe.launch.servers.server_process import free_port
from tests.examples.conftest import Run, example

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]


def test_engine(run: Run, model: str):
    said = run("python", example("engine.py"), model)
    assert said.count("(16 tokens)") == 3


def test_serve(run: Run, model: str):
    said = run(example("serve.sh"), model, str(free_port()))
    assert "asking" in said
    assert said.endswith("stopped\n")


def test_disagg(run: Run, model: str):
    said = run(example("disagg.sh"), model, str(free_port()))
    assert "through the router: " in said
    assert "EQUAL to the reference in every check" in said
    assert said.endswith("stopped\n")
