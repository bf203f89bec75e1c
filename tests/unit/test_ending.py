"""A server names the process that failed first, whatever the others say of it."""

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest.mock import patch

import msgspec
import pytest

from sglang_ascend_moe import ending
from sglang_ascend_moe.ending import Finding, Report, root_cause
from sglang_ascend_moe.options import Options, attach

CULPRIT = Report("scheduler_TP1", 11, "ValueError: no such row", False)
VICTIM = Report("scheduler_TP0", 10, "PeerLost: rank 1 failed", True)
KILLED = Finding(11, "scheduler_TP1 (process 11) was killed, or crashed")
STOPPED = Finding(11, "scheduler_TP1 (process 11) has been stopped for 10 s (SIGSTOP)")


@pytest.mark.parametrize(
    ("reports", "findings", "cause"),
    [
        pytest.param([VICTIM, CULPRIT], [], "scheduler_TP1 (process 11) raised ValueError: no such row", id="raised"),
        pytest.param([VICTIM], [KILLED], KILLED.fault, id="killed"),
        pytest.param([VICTIM], [STOPPED], STOPPED.fault, id="stopped"),
        pytest.param([VICTIM, CULPRIT], [KILLED], "scheduler_TP1 (process 11) raised ValueError", id="raised and gone"),
        pytest.param([VICTIM], [Finding(10, "gone")], "scheduler_TP0 (process 10) raised PeerLost", id="victim alone"),
        pytest.param([], [], "a process of it failed; the log says which one", id="nothing known"),
    ],
)
def test_the_culprit_is_named(reports, findings, cause):
    assert root_cause(reports, findings).startswith(cause)


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch):
    """A launcher that has made room for reports, and the server arguments that say where."""
    monkeypatch.setattr(ending, "_reports", None)
    monkeypatch.setattr(ending, "_watched", {})
    server_args = SimpleNamespace()
    attach(server_args, Options())
    ending.make_room_for_reports(object, server_args, None)
    # In place of SGLang's, which takes long to import.
    context = SimpleNamespace(get_server_args=lambda: server_args)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
    yield
    os.close(ending._reports)


def report(error: Exception) -> None:
    try:
        raise error
    except type(error):
        ending.report_exception()


@pytest.mark.usefixtures("reports")
def test_what_a_process_raised_reaches_the_launcher():
    child = os.fork()
    if child == 0:
        report(ValueError("two\nlines"))
        report(RuntimeError("Connection closed by peer [127.0.0.1]"))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    first, second = ending._read_reports()
    assert (first.process, first.error, first.blames_peer) == (child, "ValueError: two lines", False)
    assert second.blames_peer


@pytest.mark.usefixtures("reports")
def test_a_report_that_was_cut_short_is_passed_over():
    report(ValueError("whole"))
    os.pwrite(ending._reports, b'{"title": "sglang::sched\n', os.fstat(ending._reports).st_size)
    (read,) = ending._read_reports()
    assert read.error == "ValueError: whole"


@pytest.mark.usefixtures("reports")
def test_nobody_waits_for_the_warm_up():
    begun, end = threading.Event(), threading.Event()

    def warm_up(server_args, *, callback):
        begun.set()
        end.wait(60)
        callback(server_args)

    called = []
    ending.warm_up_in_background(warm_up, "arguments", callback=called.append)
    assert begun.wait(60)
    assert called == []
    end.set()


def test_a_server_without_ascend_moe_waits_for_the_warm_up(monkeypatch):
    monkeypatch.setattr(ending, "_reports", None)
    called = []
    ending.warm_up_in_background(called.append, "arguments")
    assert called == ["arguments"]


def test_a_server_without_ascend_moe_ends_as_sglang_ends_it(monkeypatch):
    monkeypatch.setattr(ending, "_reports", None)
    ending.make_room_for_reports(object, SimpleNamespace(), None)
    killed = []
    ending.end_by_name(lambda *given: killed.append(given), os.getpid())
    assert killed == [(os.getpid(),)]


@pytest.mark.usefixtures("reports")
def test_ending_others_is_left_to_sglang():
    killed = []
    ending.end_by_name(lambda *given, **keywords: killed.append((given, keywords)), os.getpid(), include_parent=False)
    ending.end_by_name(lambda *given, **keywords: killed.append((given, keywords)), 1)
    assert killed == [((os.getpid(),), {"include_parent": False}), ((1,), {})]


def test_the_launcher_exits_with_code_1_and_the_cause_in_its_last_line(tmp_path):
    log = tmp_path / "log"
    launcher = os.fork()
    if launcher == 0:
        with log.open("w") as sys.stdout:
            sys.stderr = sys.stdout
            server_args = SimpleNamespace()
            attach(server_args, Options())
            ending.make_room_for_reports(object, server_args, None)
            os.write(ending._reports, msgspec.json.encode(VICTIM) + b"\n" + msgspec.json.encode(CULPRIT) + b"\n")
            print("log")
            ending.end_by_name(lambda _, include_parent: print("parent too:", include_parent), os.getpid())
            print("never")
    code = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
    last = "The server ends: scheduler_TP1 (process 11) raised ValueError: no such row"
    assert (code, log.read_text().splitlines()) == (1, ["log", "parent too: False", last])


class Watchdog:
    """What `SubprocessWatchdog._check_processes` returns, and the signals that the launcher sends itself."""

    def __init__(self, ended: bool = False) -> None:
        self.signals: list[int] = []
        self._ended = ended

    def check(self) -> bool:
        with patch.object(os, "kill", lambda _, number: self.signals.append(number)):
            return ending.check_ranks(lambda _: self._ended, self)


@pytest.fixture
def rank(reports):  # noqa: ARG001 - what it watches
    """A process with the title of a rank, and its state as long as it lives."""
    process = subprocess.Popen(["sglang::scheduler_TP1", "60"], executable="/bin/sleep")
    yield process
    process.kill()
    process.wait()


def test_a_rank_that_is_killed_ends_the_server(rank):
    watchdog = Watchdog()
    assert not watchdog.check()
    os.kill(rank.pid, signal.SIGKILL)
    os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
    assert watchdog.check()
    assert watchdog.signals == [signal.SIGQUIT]
    [finding] = ending._look()
    assert finding.fault == f"sglang::scheduler_TP1 (process {rank.pid}) was killed, or crashed"


def test_a_rank_that_stays_stopped_ends_the_server_and_one_that_resumes_does_not(rank):
    watchdog = Watchdog()
    for _ in range(2):
        os.kill(rank.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, rank.pid, os.WSTOPPED)
        assert not any(watchdog.check() for _ in range(ending.STOPPED_CHECKS - 1))
        os.kill(rank.pid, signal.SIGCONT)
        os.waitid(os.P_PID, rank.pid, os.WCONTINUED)
        assert not watchdog.check()
    os.kill(rank.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, rank.pid, os.WSTOPPED)
    assert [watchdog.check() for _ in range(ending.STOPPED_CHECKS)][-1]
    assert watchdog.signals == [signal.SIGQUIT]
    assert "has been stopped for 10 s (SIGSTOP)" in ending._look()[0].fault


@pytest.mark.usefixtures("rank")
def test_what_sglang_has_noticed_itself_is_not_signalled_twice():
    watchdog = Watchdog(ended=True)
    assert watchdog.check()
    assert watchdog.signals == []
