"""The test process's side: start the fork server, start engines, ask them, and see them end."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import msgspec

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.servers.server_process import group_members, log_tail
from tests.serving.engine_messages import (
    Call,
    Called,
    Continue,
    Exited,
    Generate,
    Generated,
    Inspect,
    Inspected,
    Ready,
    Reap,
    Refused,
    Started,
    StartEngine,
)

REPOSITORY = Path(__file__).parents[2]
IMPORT_TIMEOUT = 180.0
START_TIMEOUT = 240.0
ANSWER_TIMEOUT = 240.0
EXIT_TIMEOUT = 60.0


class EngineFailure(Exception):
    """An engine could not be built, did not answer in time, or died. Carries the end of its log."""


class EngineConfig(NamedTuple):
    """What an engine is started with.

    `arguments` are those of `sglang.Engine`; `patches` name functions in tests/serving/patches.py; `environment` is
    added to that of its processes.
    """

    arguments: dict[str, Any]
    patches: tuple[str, ...] = ()
    environment: dict[str, str] | None = None


class ForkServer:
    """The process that imports SGLang once (see tests/serving/fork_server.py). A context manager.

    `environment` is added to that of the process and its engines.
    """

    def __init__(self, log_folder: Path, environment: dict[str, str] | None = None) -> None:
        self._log_folder = log_folder
        self._engines_started = 0
        self._control, inherited = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with inherited, (log_folder / "fork_server.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.serving.fork_server", str(inherited.fileno())],
                cwd=REPOSITORY,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
                pass_fds=[inherited.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._control.settimeout(IMPORT_TIMEOUT)

    def __enter__(self) -> Self:
        try:
            imported = self._control.recv(1024)
        except TimeoutError:
            imported = b""
        if not imported:
            self.close()
            raise EngineFailure(f"SGLang could not be imported\n{log_tail(self._log_folder / 'fork_server.log')}")
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. Engines still running see their channel close and end too."""
        self._control.close()
        try:
            self._process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def start(self, config: EngineConfig) -> "Engine":
        """Start one engine and wait until it answers. Raises EngineFailure if it cannot be built."""
        self._engines_started += 1
        log = self._log_folder / f"engine_{self._engines_started}.log"
        ours, theirs = socket.socketpair()
        request = StartEngine(config.arguments, config.environment or {}, list(config.patches), str(log))
        with theirs:
            socket.send_fds(self._control, [msgspec.msgpack.encode(request)], [theirs.fileno()])
        self._control.settimeout(START_TIMEOUT)
        started = msgspec.msgpack.decode(self._control.recv(1024), type=Started)
        engine = Engine(self, started.pid, Connection(ours.detach()), log)
        engine.wait_until_ready()
        return engine

    def reap(self, pid: int, timeout: float) -> int | None:
        """Wait for an engine's process; its return code, or None if it still runs after `timeout` seconds."""
        self._control.settimeout(timeout + EXIT_TIMEOUT)
        self._control.send(msgspec.msgpack.encode(Reap(pid, timeout)))
        return msgspec.msgpack.decode(self._control.recv(1024), type=Exited).returncode


class Engine:
    """A running engine. A context manager that ends every process of it."""

    def __init__(self, fork_server: ForkServer, pid: int, channel: Connection, log: Path) -> None:
        self.pid = pid
        self.log = log
        self._fork_server = fork_server
        self._channel = channel

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Return when the engine answers requests; raise EngineFailure, with everything ended, if it never will."""
        try:
            reply = self._receive(Ready | Refused, START_TIMEOUT)
        except EngineFailure:
            self.kill()
            raise
        if isinstance(reply, Refused):
            self.close()
            raise EngineFailure(f"{reply.error}\n{log_tail(self.log)}")

    def generate(self, prompts: list[list[int]], new_tokens: int, *, together: bool = False) -> list[Answer]:
        """Greedy continuations of `prompts` (token ids), one after the other or as one batch."""
        return self.generate_with_cache(prompts, new_tokens, together=together).answers

    def generate_with_cache(
        self, prompts: list[list[int]], new_tokens: int, *, together: bool = False, **sampling: Any
    ) -> Generated:
        """Like `generate`, but for the parameters `sampling`; also tells how many tokens of each prompt came from the
        prefix cache, and what drafts gave."""
        self._channel.send_bytes(msgspec.msgpack.encode(Generate(prompts, new_tokens, together, sampling)))
        return self._receive(Generated, ANSWER_TIMEOUT)

    def continue_texts(self, texts: list[str], images: list[list[str]], new_tokens: int) -> list[Answer]:
        """Greedy continuations of `texts`, as one batch, with the images of each."""
        self._channel.send_bytes(msgspec.msgpack.encode(Continue(texts, images, new_tokens)))
        return self._receive(Generated, ANSWER_TIMEOUT).answers

    def call(self, method: str) -> None:
        """Call a method of `sglang.Engine` that takes no arguments."""
        self._channel.send_bytes(msgspec.msgpack.encode(Call(method)))
        self._receive(Called, ANSWER_TIMEOUT)

    def inspect(self) -> Inspected:
        """What the engine says of itself; needs `enable_metrics`."""
        self._channel.send_bytes(msgspec.msgpack.encode(Inspect()))
        return self._receive(Inspected, ANSWER_TIMEOUT)

    def close(self) -> None:
        """Shut the engine down and wait for every process of it. Raises EngineFailure if something stays."""
        self._channel.close()
        returncode = self._fork_server.reap(self.pid, EXIT_TIMEOUT)
        left = group_members(self.pid)
        if returncode is None or left:
            self.kill()
            raise EngineFailure(f"engine {self.pid} left processes {left} behind\n{log_tail(self.log)}")

    def kill(self) -> None:
        """Kill every process of the engine at once."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._fork_server.reap(self.pid, EXIT_TIMEOUT)

    def _receive(self, kind: Any, timeout: float) -> Any:
        try:
            if not self._channel.poll(timeout):
                raise EngineFailure(f"no answer within {timeout:.0f} s\n{log_tail(self.log)}")
            return msgspec.msgpack.decode(self._channel.recv_bytes(), type=kind)
        except (EOFError, ConnectionResetError):
            raise EngineFailure(f"the engine died\n{log_tail(self.log)}") from None
