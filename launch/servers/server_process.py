"""An SGLang server as a child process: started with a log, awaited with visible progress, and stopped for certain."""

import contextlib
import ctypes
import errno
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from sglang_ascend_moe.serving import owned_folder, stages
from sglang_ascend_moe.serving.http_client import answered
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.stages import Stage

LOG_TAIL_LINES = 40
LOG_LINE_CHARACTERS = 300
POLL_SECONDS = 0.5
# A look-up of the machine's addresses and of a hub would take time, and fail without a network.
ENVIRONMENT = {"SGLANG_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
NO_VARIABLES: Mapping[str, str] = {}
STOP_SECONDS = 30.0
END_POLL_SECONDS = 0.05
FIRST_PORT = 10000
DRAWN_PORTS = (range(15000, 17001), range(22000, 30000))
"""Of which mooncake and SGLang draw some for themselves."""
EPHEMERAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
# From linux/prctl.h.
PR_SET_PDEATHSIG = 1
# Ports that this process has been given: their servers may not listen yet.
_given: set[int] = set()


class ServerFailed(Exception):
    """A server ended, or was not ready in time. The message holds the end of its log."""


class Progress(NamedTuple):
    """What a waiting caller can show: seconds since the start, and what the server is busy with."""

    seconds: float
    stage: str


class ServerProcess:
    """`python -m sglang.launch_server` (or another module) with `arguments`, listening on `port` of `host`.

    Without `port` on a free one.

    A context manager: on leaving it, whatever the reason, the server and everything it started has ended. The server
    leads a process group of its own, so Ctrl-C in a terminal reaches the caller only, who then leaves the context.
    Should the caller be killed, the kernel interrupts the server.

    `variables`: added to its environment. `temporary`: a folder for the server's temporary files, removed with it,
    because SGLang removes none of them.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        *,
        module: str = "sglang.launch_server",
        host: str = "127.0.0.1",
        port: int | None = None,
        variables: Mapping[str, str] = NO_VARIABLES,
    ) -> None:
        self.host = host
        self._variables = variables
        self.port = port or free_port()
        # A server that listens everywhere is reached here, too.
        self.url = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.port}"
        self.log = log
        self._arguments = [*arguments, "--host", host, "--port", str(self.port)]
        self._module = module
        self._begun = time.monotonic()
        self._stage = Stage.IMPORTING
        self._process: psutil.Process
        # Known once the context is left.
        self.ended_by_itself: bool | None = None

    def __enter__(self) -> Self:
        try:
            with interrupts.held():
                self.start()
        except KeyboardInterrupt:
            self.stop()
            raise
        return self

    def start(self) -> None:
        """Start the server, which has to be stopped."""
        self.make_temporary()
        with self.log.open("wb") as log:
            self._process = psutil.Popen(
                [sys.executable, "-m", self._module, *self._arguments],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=can_be_interrupted,
                pass_fds=[owned_folder.descriptor_of(self.temporary)],
            )

    def make_temporary(self) -> None:
        """Makes the folder of the server's temporary files, in which it also says how far it is."""
        self.temporary = owned_folder.make()
        self._stages.touch()

    @property
    def environment(self) -> dict[str, str]:
        """What the server finds in its environment besides what is there."""
        return {**ENVIRONMENT, **self._variables, "TMPDIR": str(self.temporary), stages.VARIABLE: str(self._stages)}

    @property
    def _stages(self) -> Path:
        return self.temporary / "stages"

    @property
    def stage(self) -> Stage:
        """What the server is busy with, as it says itself."""
        # A server that ends may remove its folder itself.
        with contextlib.suppress(FileNotFoundError):
            self._stage = stages.furthest(self._stages)
        return self._stage

    @property
    def found_port_taken(self) -> bool:
        """Whether the server has ended by itself, and another program listens at its port."""
        return (self.exit_code or 0) > 0 and is_taken(self.host, self.port)

    def __exit__(self, *_exception: object) -> None:
        with interrupts.held():
            self.ended_by_itself = self.stop()

    @property
    def pid(self) -> int:
        """The server's process, and the id of its process group."""
        return self._process.pid

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._begun

    @property
    def exit_code(self) -> int | None:
        """Of the server's own process, negative for a signal; None while it runs."""
        with contextlib.suppress(psutil.TimeoutExpired):
            return self._process.wait(0)
        return None

    def wait_until_ready(self, timeout: float, show: Callable[[Progress], None]) -> float:
        """Wait until the server answers; call `show` twice a second meanwhile. Returns the seconds it took.

        Raises ServerFailed if the server ends or is not ready within `timeout` seconds.
        """
        while True:
            seconds = self.seconds
            if (code := self.exit_code) is not None:
                raise ServerFailed(f"the server ended with exit code {code}; the end of its log:\n{log_tail(self.log)}")
            if self.answers():
                return seconds
            if seconds > timeout:
                raise ServerFailed(
                    f"the server was not ready after {timeout:.0f} s; the end of its log:\n{log_tail(self.log)}"
                )
            show(Progress(seconds, self.stage.value))
            time.sleep(POLL_SECONDS)

    def wait_until_ended(self, timeout: float) -> int:
        """Wait for the server's own process and return its exit code. Raises ServerFailed after `timeout` seconds."""
        try:
            return self._process.wait(timeout)
        except psutil.TimeoutExpired:
            raise ServerFailed(f"the server still runs after {timeout:.0f} s\n{log_tail(self.log)}") from None

    def stop(self) -> bool:
        """Interrupt the server as Ctrl-C does, and kill what is left of its process group half a minute later.

        Returns whether everything ended by itself.
        """
        if self.exit_code is None:
            self.interrupt()
            with contextlib.suppress(psutil.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        by_itself = not group_members(self.pid)
        if not by_itself:
            self.kill()
            # What was killed ends a moment later, and may hold a port or make a file until then.
            until = time.monotonic() + STOP_SECONDS
            while group_members(self.pid) and time.monotonic() < until:
                time.sleep(END_POLL_SECONDS)
        self._process.wait()
        owned_folder.remove(self.temporary)
        return by_itself

    def interrupt(self) -> None:
        """Ask the server to end, without waiting."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End the server and everything it started at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def answers(self) -> bool:
        """Whether the server says that it is ready."""
        try:
            with answered("GET", f"{self.url}/health", timeout=20) as answer:
                return answer.status_code == 200
        except OSError:
            return False


def can_be_interrupted() -> None:
    """Undo what a shell does to background jobs, which ignore SIGINT, and what `interrupts.held` does."""
    for number in interrupts.SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts.SIGNALS)
    end_with_parent()


def end_with_parent(number: int = signal.SIGINT) -> None:
    """The kernel sends this process the signal when the one that started it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def free_port(following: int = 0) -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now, nor on so many `following` ones; each is given once.

    It is none of those that the kernel gives to connections, nor of DRAWN_PORTS, because a server takes long to start,
    and one of the many connections meanwhile, or another server, might be given its port.
    """
    ephemeral = int(EPHEMERAL_PORTS.read_text().split()[0])
    below = range(FIRST_PORT, max(FIRST_PORT, ephemeral - following))
    for port in random.sample(below, len(below)):
        wanted = range(port, port + following + 1)
        avoided = any(one in ports for one in wanted for ports in (*DRAWN_PORTS, _given))
        if not avoided and not any(is_taken("127.0.0.1", one) for one in wanted):
            _given.update(wanted)
            return port
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def group_members(group: int) -> list[int]:
    """Pids of the living processes of process group `group`; zombies do not count."""
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                members.append(process.pid)
    return members


def is_taken(host: str, port: int) -> bool:
    """Whether another program listens at a port of this machine."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        return error.errno == errno.EADDRINUSE
    return False


def log_tail(log: Path) -> str:
    """The last lines of a log, long ones cut."""
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(line[:LOG_LINE_CHARACTERS] for line in lines[-LOG_TAIL_LINES:])
