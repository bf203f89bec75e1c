"""The demo, as users start it, and what it leaves behind."""

import signal
import subprocess
import sys

import pytest

from sglang_ascend_moe.serving import owned_folder
from sglang_ascend_moe.serving.launcher.exit_codes import INTERRUPTED
from tests.serving.leftovers import MARK, NOTHING, Surroundings

DEMO = [sys.executable, "-m", "sglang_ascend_moe.launch.main", "demo"]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def surroundings(monkeypatch) -> Surroundings:
    marked = Surroundings()
    monkeypatch.setenv(MARK, marked.mark)
    return marked


def test_the_demo_ends_with_equal_tokens_and_leaves_nothing(surroundings):
    finished = subprocess.run(DEMO, capture_output=True, text=True, timeout=850)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "EQUAL: 57 tokens" in finished.stdout
    assert "8 of 8 answers are right" in finished.stdout
    assert "had to be killed" not in finished.stdout
    assert surroundings.leftovers() == NOTHING


@pytest.mark.parametrize(
    ("signal_number", "exit_code"),
    [
        pytest.param(signal.SIGINT, INTERRUPTED, id="ctrl-c"),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, id="killed", marks=pytest.mark.nightly),
    ],
)
def test_a_demo_that_is_ended_leaves_no_process(surroundings, tmp_path, signal_number, exit_code):
    command = [*DEMO, "--keep", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as demo:
        for line in demo.stdout:
            # A stage that is soon over may never be shown.
            if "waiting: " in line and "importing" not in line:
                break
        demo.send_signal(signal_number)
        assert demo.wait(60) == exit_code
    if signal_number == signal.SIGKILL:
        # Nothing that was killed can remove its folder: the next server does, once the last process has ended, which
        # gives up its memory, by which it is found here, before its files.
        while surroundings.leftovers() != NOTHING:
            owned_folder.remove_abandoned()
    assert surroundings.leftovers() == NOTHING


def heed_interrupts() -> None:
    """A job in the background of a shell ignores SIGINT, and so would the demo, if the tests are one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
