"""`ascend-moe disagg up` as a child of the tests: its events, its servers, and what it leaves behind."""

import contextlib
import fcntl
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import msgspec

from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient
from sglang_ascend_moe.launch.servers.server_process import group_members
from sglang_ascend_moe.serving.worker.live_state import STATE_KEY, RankState
from tests.serving.leftovers import MARK, Surroundings
from tests.serving.titled_processes import titled

READY_SECONDS = 400.0
END_SECONDS = 90.0
POLL_SECONDS = 0.1
MAX_RUNNING_REQUESTS = 8
CHUNK_TOKENS = 256
# The same for every server, and for the engine whose answers are expected.
OPTIONS = {"dtype": "bfloat16", "random-seed": 0}

Event = dict[str, Any]


def description(
    checkpoint: Path, *, prefill: int = 1, kind: str = "rust", port: int = 0, **decode_options: Any
) -> dict[str, Any]:
    """A deployment of tp2/ep2 servers, as TOML holds it. port: of the router; 0: a free one."""
    role = {"tp_size": 2, "max_running_requests": MAX_RUNNING_REQUESTS}
    return {
        "model_path": str(checkpoint),
        "prefill": {**role, "instances": prefill, "chunked_prefill_size": CHUNK_TOKENS, "options": OPTIONS},
        "decode": {**role, "options": {**OPTIONS, **decode_options}},
        "router": {"kind": kind, "port": port},
    }


def in_toml(value: Any) -> str:
    """A value of a description, on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {in_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


class Deployed:
    """`up` with the description `values`, run in a terminal of its own, with a folder of its own for temporary files.

    arguments, variables: more of its command line, and of its environment. A context manager; on leaving it `up` and
    everything of it has ended. `started`: names of the servers -> what `up` said when it started them.
    """

    def __init__(
        self, values: dict[str, Any], folder: Path, *arguments: str, variables: dict[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "deployment.toml"
        self._file.write_text("".join(f"{key} = {in_toml(value)}\n" for key, value in values.items()))
        self._folder = folder
        self._arguments, self._variables = arguments, variables or {}
        self.events: list[Event] = []
        self._coming: queue.Queue[Event | None] = queue.Queue()

    def __enter__(self) -> Self:
        # Not below the test's own folder: names of sockets may have 107 characters.
        self._temporary = Path(tempfile.mkdtemp(prefix="deployed-"))
        self._surroundings = Surroundings(self._temporary)
        self._keyboard, terminal = os.openpty()
        command = ["-m", "sglang_ascend_moe.launch.main", "disagg", "up", "--file", str(self._file), "--json"]
        with (self._folder / "up.log").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--logs", str(self._folder / "logs"), *self._arguments],
                env={**os.environ, **self._variables, MARK: self._surroundings.mark, "TMPDIR": str(self._temporary)},
                stdin=terminal,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
                preexec_fn=take_terminal,
            )
        os.close(terminal)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.interrupt()
        try:
            self._process.wait(END_SECONDS)
        finally:
            for pid in [self._process.pid, *(event["pid"] for event in self.started.values())]:
                for member in group_members(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(member, signal.SIGKILL)
            self._process.wait()
            self._reader.join()
            os.close(self._keyboard)
            shutil.rmtree(self._temporary)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def started(self) -> dict[str, Event]:
        return {event["name"]: event for event in self.events if event["event"] == "starting"}

    def url(self, name: str) -> str:
        return self.started[name]["url"]

    def wait_for(self, kind: str, timeout: float, **fields: Any) -> Event:
        """The next event of this kind with these fields. Fails, telling everything so far, if it comes not in time."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self._coming.get(timeout=left)
            except queue.Empty:
                break
            if event is None:
                break
            self.events.append(event)
            if {"event": kind, **fields}.items() <= event.items():
                return event
        raise AssertionError(
            f"no event {kind!r} {fields}; {self.events}\n{(self._folder / 'up.log').read_text()[-3000:]}"
        )

    def wait_until_serving(self) -> Event:
        return self.wait_for("serving", READY_SECONDS)

    def interrupt(self) -> None:
        """Ctrl-C: the kernel interrupts every process of the terminal's foreground group."""
        os.write(self._keyboard, b"\x03")

    def wait_until_ended(self) -> int:
        """The exit code of `up`; its last events are in `events` then."""
        code = self._process.wait(END_SECONDS)
        self._reader.join()
        while (event := self._coming.get()) is not None:
            self.events.append(event)
        return code

    def left_behind(self) -> list[str]:
        """Processes, names in /dev/shm, names in the temporary directory, and listening servers."""
        left = self._surroundings.leftovers()
        return [
            *(f"process {pid}" for pid in left.processes),
            *(f"/dev/shm/{name}" for name in left.names),
            *left.temporary,
            *(f"{name} at {event['url']}" for name, event in self.started.items() if listens(event["url"])),
        ]

    def is_empty_folder(self, name: str) -> bool:
        """Whether this name in the temporary directory is that of a folder without a file."""
        folder = self._temporary / name
        return folder.is_dir() and not any(path.is_file() for path in folder.rglob("*"))

    def rank_process(self, name: str, rank: int) -> int:
        """The pid of one rank of a server, known by the title that SGLang gives it."""
        [pid] = titled(self.started[name]["pid"], f"sglang::scheduler_TP{rank}_EP{rank}")
        return pid

    def states(self, name: str) -> list[RankState]:
        """What the ranks of a server say of themselves."""
        return msgspec.convert(self.internal_state(name)[STATE_KEY], list[RankState])

    def internal_state(self, name: str) -> dict[str, Any]:
        return get(f"{self.url(name)}/server_info")["internal_states"][0]

    def load(self, name: str) -> dict[str, int]:
        """Requests and tokens that a server holds now."""
        [load] = get(f"{self.url(name)}/v1/loads")["loads"]
        return {key: load[key] for key in ("num_running_reqs", "num_waiting_reqs", "num_used_tokens")}

    def load_when_idle(self, name: str, timeout: float) -> dict[str, int]:
        """The load once no queue of the server holds a request and the prefix cache is empty.

        The last one seen if that does not happen; `busy` is 1 if SGLang finds a request in any of its queues, also of
        those between prefill and decode.
        """
        deadline = time.monotonic() + timeout
        while True:
            load = {"busy": int(not self._flushes(name)), **self.load(name)}
            if not any(load.values()) or time.monotonic() > deadline:
                return load
            time.sleep(POLL_SECONDS)

    def _flushes(self, name: str) -> bool:
        """Empties the prefix cache, which SGLang refuses unless it is idle."""
        try:
            urllib.request.urlopen(urllib.request.Request(f"{self.url(name)}/flush_cache", b""), timeout=30).close()
        except urllib.error.HTTPError:
            return False
        return True

    def _read(self) -> None:
        for line in self._process.stdout:
            self._coming.put(json.loads(line))
        self._coming.put(None)


def take_terminal() -> None:
    """In the child, which leads a session: its standard input is the terminal of that session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def listens(url: str) -> bool:
    """Whether somebody takes connections there."""
    address = urllib.parse.urlsplit(url)
    with socket.socket() as probe:
        return probe.connect_ex((address.hostname, address.port)) == 0


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as response:
        return json.load(response)


def tokens_through(
    deployment: Deployed, prompts: list[list[int]], new_tokens: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Of the answers of the router, to one prompt after the other, and to all at a time."""
    client = GenerateClient(deployment.url("router"), timeout=60)

    def tokens(prompt: list[int]) -> list[int]:
        return client.ask(prompt, new_tokens).answer.tokens

    alone = list(map(tokens, prompts))
    with ThreadPoolExecutor(len(prompts)) as pool:
        return alone, list(pool.map(tokens, prompts))
