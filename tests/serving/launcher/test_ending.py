"""A server names the process that failed first, whatever the others say of it."""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import msgspec
import psutil
import pytest

from sglang_ascend_moe.errors import PeerLost
from sglang_ascend_moe.serving.launcher import ending, interrupts
from sglang_ascend_moe.serving.launcher.ending import root_cause
from sglang_ascend_moe.serving.launcher.engine_processes import STOPPED_CHECKS, EngineProcesses
from sglang_ascend_moe.serving.launcher.process_reports import Finding, Report, Started, say
from sglang_ascend_moe.serving.options import Options, attach

CULPRIT = Report("scheduler_TP1", 11, "ValueError: no such row", False)
VICTIM = Report("scheduler_TP0", 10, "PeerLost: rank 1 failed", True)
OTHER_VICTIM = Report("scheduler_TP0", 10, "ValueError: other ranks did not finish", False)
CRASHED = Finding(11, "scheduler_TP1 (process 11) was killed, or crashed")
KILLED = CRASHED._replace(killed=True)
STOPPED = Finding(11, "scheduler_TP1 (process 11) has been stopped for 10 s (SIGSTOP)")


@pytest.mark.parametrize(
    ("reports", "findings", "cause"),
    [
        pytest.param([VICTIM, CULPRIT], [], "scheduler_TP1 (process 11) raised ValueError: no such row", id="raised"),
        pytest.param([VICTIM], [KILLED], KILLED.fault, id="killed"),
        pytest.param([VICTIM], [STOPPED], STOPPED.fault, id="stopped"),
        pytest.param([OTHER_VICTIM], [KILLED], KILLED.fault, id="killed, and a victim that blames nobody"),
        pytest.param([OTHER_VICTIM], [CRASHED], "scheduler_TP0 (process 10) raised ValueError", id="a crash"),
        pytest.param([VICTIM, CULPRIT], [KILLED], "scheduler_TP1 (process 11) raised ValueError", id="raised and gone"),
        pytest.param([VICTIM], [Finding(10, "gone")], "scheduler_TP0 (process 10) raised PeerLost", id="victim alone"),
        pytest.param([], [], "a process of it failed; the log says which one", id="nothing known"),
    ],
)
def test_the_culprit_is_named(reports, findings, cause):
    assert root_cause(reports, findings).startswith(cause)


class Process:
    """What a process is to who started it."""

    def __init__(self, pid: int, is_alive: Callable[[], bool] = lambda: True) -> None:
        self.pid = pid
        self.is_alive = is_alive
        self.exitcode: int | None = None


class Engine:
    """What `sglang.Engine` keeps of the processes that it launches, here one with the title of a rank."""

    def __init__(self, title: str = "sglang::scheduler_TP1") -> None:
        self.server_args = SimpleNamespace(nnodes=1)
        attach(self.server_args, Options())
        ending.make_room_for_reports(object, self.server_args, None)
        self.process = subprocess.Popen([title, "60"], executable="/bin/sleep")
        started = Process(self.process.pid, lambda: self.process.poll() is None)
        self._processes = [started, Process(os.getppid())]  # the second is no rank
        ending.keep_schedulers((None, [started]), object, self.server_args, None)
        say(self.known.path, Started(title, started.pid))
        self.signals: list[int] = []

    @property
    def known(self) -> EngineProcesses:
        [known] = [known for known in ending._engines if known.is_watched_by(self)]
        return known

    def check(self, ended: bool = False) -> bool:
        """What its watchdog makes of `SubprocessWatchdog._check_processes`, which returns `ended`."""
        with patch.object(os, "kill", lambda _, number: self.signals.append(number)):
            return ending.check_ranks(lambda _: ended, self)

    def kill_rank(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch):
    """Launches engines in this process, of which it knows none before and after."""
    assert ending._engines == []
    engines = []

    def launch_engine(title: str = "sglang::scheduler_TP1") -> Engine:
        engines.append(Engine(title))
        # In place of SGLang's, which takes long to import.
        context = SimpleNamespace(get_server_args=lambda: engines[-1].server_args)
        monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", context)
        return engines[-1]

    yield launch_engine
    for engine in engines:
        engine.end()
    for known in ending._engines:
        known.close()
    ending._engines.clear()


@pytest.fixture
def engine(launch) -> Engine:
    return launch()


def run_scheduler_process(*errors: Exception) -> None:
    """What SGLang's function of this name does when it catches them."""
    for error in errors:
        try:
            raise error
        except type(error):
            ending.report_exception()


def load_weights(error: Exception) -> None:
    """Of these SGLang shows the traceback too, and goes on."""
    try:
        raise error
    except type(error):
        ending.report_exception()


def in_a_child(run: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        run()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    return child


def test_what_a_process_raised_reaches_the_launcher(engine):
    errors = [ValueError("two\nlines"), RuntimeError("closed by peer"), PeerLost("rank 1 has died", 1)]
    child = in_a_child(lambda: run_scheduler_process(*errors))
    said = [(report.process, report.error, report.blames_peer) for report in engine.known.reports()]
    assert said == [
        (child, "ValueError: two lines", False),
        (child, "RuntimeError: closed by peer", False),
        (child, "PeerLost: rank 1 has died", True),
    ]


def test_exceptions_that_end_nothing_are_not_reported(engine):
    in_a_child(lambda: load_weights(KeyError("no such tensor")))
    assert engine.known.reports() == []


def test_a_report_that_was_cut_short_is_passed_over(engine):
    in_a_child(lambda: run_scheduler_process(ValueError("whole")))
    write_reports(engine, b'{"type": "Report", "title": "sglang::sched')
    (read,) = engine.known.reports()
    assert read.error == "ValueError: whole"


@pytest.mark.usefixtures("engine")
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


def test_a_server_without_ascend_moe_waits_for_the_warm_up():
    called = []
    ending.warm_up_in_background(called.append, "arguments")
    assert called == ["arguments"]


def stopped() -> None:
    """As SGLang's HTTP server ends after Ctrl-C."""
    raise KeyboardInterrupt


def test_a_server_of_a_command_line_that_was_stopped_has_ended_well():
    with interrupts.watched("serve"):
        ending.stop_without_traceback(stopped)


def test_whoever_starts_a_server_without_a_command_line_is_interrupted():
    with pytest.raises(KeyboardInterrupt):
        ending.stop_without_traceback(stopped)


def test_a_server_without_ascend_moe_ends_as_sglang_ends_it():
    ending.make_room_for_reports(object, SimpleNamespace(), None)
    killed = []
    ending.end_by_name(lambda *given: killed.append(given), os.getpid())
    assert killed == [(os.getpid(), True)]


@pytest.mark.usefixtures("engine")
def test_ending_others_is_left_to_sglang():
    killed = []
    ending.end_by_name(lambda *given, **keywords: killed.append((given, keywords)), 1, wait_timeout=60)
    ending.end_by_name(lambda *given, **keywords: killed.append((given, keywords)), os.getpid(), include_parent=False)
    assert killed == [((1, True), {"wait_timeout": 60}), ((os.getpid(), False), {})]


def write_reports(engine: Engine, *reports: bytes) -> None:
    descriptor = os.open(engine.known.path, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"".join(report + b"\n" for report in reports))
    os.close(descriptor)


def end_launcher(run: Callable[[], None], log: Path) -> tuple[int, list[str]]:
    """Exit code and log of a launcher that does `run` and is then told to end."""

    def kill_process_tree(_: int, include_parent: bool) -> None:
        print("parent too:", include_parent)
        for child in psutil.Process().children():
            child.kill()

    launcher = os.fork()
    if launcher == 0:
        with log.open("w") as sys.stdout:
            os.dup2(sys.stdout.fileno(), 2)
            run()
            print("log")
            ending.end_by_name(kill_process_tree, os.getpid())
            print("never")
    code = os.waitstatus_to_exitcode(os.waitpid(launcher, 0)[1])
    return code, log.read_text().splitlines()


def test_the_launcher_exits_with_code_1_and_the_cause_in_its_last_line(tmp_path):
    def run() -> None:
        engine = Engine()
        write_reports(engine, msgspec.json.encode(VICTIM), msgspec.json.encode(CULPRIT))

    last = "The server ends: scheduler_TP1 (process 11) raised ValueError: no such row"
    assert end_launcher(run, tmp_path / "log") == (1, ["log", "parent too: False", last])


def test_a_victim_that_is_faster_than_the_culprit_is_not_blamed(tmp_path):
    def run() -> None:
        engine = Engine()
        write_reports(engine, msgspec.json.encode(VICTIM))
        # When the launcher is told of the failure, the culprit has not said yet what it raised.
        ending.CAUSE_SECONDS = 60.0
        threading.Timer(0.2, write_reports, (engine, msgspec.json.encode(CULPRIT))).start()

    last = "The server ends: scheduler_TP1 (process 11) raised ValueError: no such row"
    assert end_launcher(run, tmp_path / "log") == (1, ["log", "parent too: False", last])


def test_a_killed_rank_is_named_whatever_the_others_raise(tmp_path):
    def run() -> None:
        engine = Engine()
        engine.kill_rank()
        write_reports(engine, msgspec.json.encode(OTHER_VICTIM))
        print(engine.process.pid)

    code, [pid, *_, last] = end_launcher(run, tmp_path / "log")
    assert (code, last) == (1, f"The server ends: sglang::scheduler_TP1 (process {pid}) was killed, or crashed")


def test_a_rank_that_never_had_a_title_is_named_by_what_it_was_to_become(tmp_path):
    def run() -> None:
        engine = Engine()
        killed = subprocess.Popen(["/bin/sleep", "60"])
        ending.keep_detokenizers(([Process(killed.pid)], []), object, engine.server_args, None)
        os.kill(killed.pid, signal.SIGKILL)
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        print(killed.pid)

    code, [pid, *_, last] = end_launcher(run, tmp_path / "log")
    assert (code, last) == (1, f"The server ends: sglang::detokenizer (process {pid}) was killed, or crashed")


def test_a_rank_that_is_stopped_is_named_also_if_the_others_have_no_patience(tmp_path):
    def run() -> None:
        engine = Engine()
        os.kill(engine.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, engine.process.pid, os.WSTOPPED)
        write_reports(engine, msgspec.json.encode(VICTIM))
        print(engine.process.pid)

    code, [pid, *_, last] = end_launcher(run, tmp_path / "log")
    assert (code, last) == (1, f"The server ends: sglang::scheduler_TP1 (process {pid}) is stopped (SIGSTOP)")


def test_an_engine_that_was_shut_down_has_not_crashed(engine):
    watched = engine.known
    ending.end_by_name(lambda *_: engine.end(), os.getpid(), include_parent=False)
    assert watched.started
    assert ending.check_ranks(pytest.fail, engine)
    assert engine.signals == []


@pytest.mark.parametrize("culprit", ["first", "second"])
def test_of_two_engines_at_the_same_time_the_one_whose_rank_is_dead_is_named(tmp_path, culprit):
    def run() -> None:
        engines = {name: Engine(f"sglang::scheduler_{name}") for name in ("first", "second")}
        assert not any(engine.check() for engine in engines.values())
        engines[culprit].kill_rank()
        assert [name for name, engine in engines.items() if engine.check()] == [culprit]
        # The engine's own peers blame each other.
        write_reports(engines[culprit], msgspec.json.encode(VICTIM))
        print(engines[culprit].process.pid)

    code, [pid, *_, last] = end_launcher(run, tmp_path / "log")
    assert (code, last) == (
        1, f"The server ends: sglang::scheduler_{culprit} (process {pid}) was killed, or crashed"
    )  # fmt: skip


@pytest.mark.parametrize("shut_down", [True, False], ids=["shut down", "died"])
def test_an_engine_after_another_names_its_own_dead_rank(tmp_path, shut_down):
    def run() -> None:
        first = Engine("sglang::scheduler_first")
        first.check()
        write_reports(first, msgspec.json.encode(CULPRIT))
        if shut_down:
            ending.end_by_name(lambda *_: first.end(), os.getpid(), include_parent=False)
        else:
            first.end()
        second = Engine("sglang::scheduler_second")
        second.check()
        second.kill_rank()
        print(second.process.pid)

    code, [pid, *_, last] = end_launcher(run, tmp_path / "log")
    assert (code, last) == (1, f"The server ends: sglang::scheduler_second (process {pid}) was killed, or crashed")


def test_the_reports_of_engines_that_were_shut_down_take_no_descriptor(launch):
    gc.collect()  # of what other tests have left
    held = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        engine = launch()
        ending.end_by_name(lambda *_, engine=engine: engine.end(), os.getpid(), include_parent=False)
    assert len(os.listdir("/proc/self/fd")) == held


def test_a_process_that_is_forked_knows_no_engine(engine):
    child = os.fork()
    if child == 0:
        os._exit(len(ending._engines))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.known


def test_what_watches_other_processes_is_left_to_sglang(engine):
    sidecar = SimpleNamespace(_processes=[Process(1)])
    engine.kill_rank()
    assert not ending.check_ranks(lambda _: False, sidecar)


def test_a_rank_that_is_killed_ends_the_server(engine):
    assert not engine.check()
    engine.kill_rank()
    assert engine.check()
    assert engine.signals == [signal.SIGQUIT]
    [finding] = engine.known.findings()
    assert finding.fault == f"sglang::scheduler_TP1 (process {engine.process.pid}) was killed, or crashed"


def test_a_rank_behind_a_controller_is_watched(engine):
    controller = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; p = subprocess.Popen(['sglang::scheduler_DP1', '60'],"
         " executable='/bin/sleep'); print(p.pid, flush=True); sys.stdin.read(); p.kill(); p.wait()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    rank = int(controller.stdout.readline())
    say(engine.known.path, Started("sglang::scheduler_DP1", rank))
    assert not engine.check()
    os.kill(rank, signal.SIGKILL)
    controller.communicate("")
    assert engine.check()
    assert [finding.process for finding in engine.known.findings()] == [rank]


def test_a_rank_that_stays_stopped_ends_the_server_and_one_that_resumes_does_not(engine):
    rank = engine.process.pid
    for _ in range(2):
        os.kill(rank, signal.SIGSTOP)
        os.waitid(os.P_PID, rank, os.WSTOPPED)
        assert not any(engine.check() for _ in range(STOPPED_CHECKS - 1))
        os.kill(rank, signal.SIGCONT)
        os.waitid(os.P_PID, rank, os.WCONTINUED)
        assert not engine.check()
    os.kill(rank, signal.SIGSTOP)
    os.waitid(os.P_PID, rank, os.WSTOPPED)
    assert [engine.check() for _ in range(STOPPED_CHECKS)][-1]
    assert engine.signals == [signal.SIGQUIT]
    assert "has been stopped for 10 s (SIGSTOP)" in engine.known.findings()[0].fault


def test_what_sglang_has_noticed_itself_is_not_signalled_twice(engine):
    assert engine.check(ended=True)
    assert engine.signals == []
