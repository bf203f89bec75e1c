"""Types what the pages say, as a reader would: in a folder that looks like a clone, with the clone's `.venv` active."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import requests

from sglang_ascend_moe.launch.servers.server_process import can_be_interrupted, free_port, log_tail
from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes, write_checkpoint
from tests.packaging.source_tree import ROOT
from tests.readme.extraction import Command, Scene, Step, needs, port_of, with_ports
from tests.serving.leftovers import MARK, NOTHING, Surroundings

COMMAND_SECONDS = 300.0
READY_SECONDS = 400.0
END_SECONDS = 90.0
POLL_SECONDS = 0.5
FOLDERS = ("examples", "launch/examples")
"""What commands read from a clone."""
MODEL = "MODEL"
SIZES = TinySizes(layers=2)
"""Of MODEL: a server captures its graphs, one for each batch size and length, in half the time of the default ones."""
SERVICE_UNAVAILABLE = 503
QUESTION = {"text": "The experts", "sampling_params": {"temperature": 0, "max_new_tokens": 8}}


class Reader:
    """Does each of `steps` and `scenes` once, and before it what it needs.

    folder: with a short name, because those of sockets below it may have 107 characters.
    """

    def __init__(self, folder: Path, steps: Iterable[Step], scenes: Iterable[Scene]) -> None:
        self._folder = folder
        self._steps = list(steps)
        self._scenes = list(scenes)
        self._model = write_checkpoint(folder / MODEL, sizes=SIZES)
        self._temporary = folder / "tmp"
        self._temporary.mkdir()
        self._done: set[Step | Scene] = set()

    def do(self, step: Step) -> None:
        """A snippet, or a command that asks no server. Raises AssertionError with what it said if it fails."""
        if step in self._done:
            return
        self._prepare(step, ())
        place = self._place(step)
        if isinstance(step, Command):
            self._run(step.text, place)
        else:
            (place / (step.file or "snippet.py")).write_text(step.text)
            if not step.file:
                self._run("python snippet.py", place)
        self._done.add(step)

    def play(self, scene: Scene) -> None:
        """Start the servers, ask each of them, type what asks them, and stop them with Ctrl-C.

        Raises AssertionError with what was said by what failed or did not end well.
        """
        if scene in self._done:
            return
        for client in scene.clients:
            self._prepare(client, scene.clients)
        surroundings = Surroundings(self._temporary)
        with ExitStack() as running:
            ports: dict[int, int] = {}
            for server in scene.servers:
                ports[port_of(server.text)] = free_port()
                command = with_ports(server.text, ports)
                environment = {**self._environment(), MARK: surroundings.mark}
                running.enter_context(Served(command, self._place(server), environment, ports[port_of(server.text)]))
            for client in scene.clients:
                self._run(with_ports(client.text, ports), self._place(client))
        left = surroundings.leftovers()
        assert left == NOTHING, f"{scene.servers[-1].text} left {left}"
        self._done.add(scene)

    def _prepare(self, step: Step, clients: tuple[Command, ...]) -> None:
        """What `step` needs of the steps before it, but for its own scene's `clients`."""
        for need in needs(step, self._steps):
            scene = next((scene for scene in self._scenes if need in scene.clients), None)
            if need in clients:
                continue
            if scene is None:
                self.do(need)
            else:
                self.play(scene)

    def _place(self, step: Step) -> Path:
        """The clone of this page's reader."""
        place = self._folder / step.page.replace("/", "-").removesuffix(".md").lower()
        if not place.exists():
            for name in FOLDERS:
                shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
            shutil.copytree(self._model, place / MODEL)
        return place

    def _environment(self) -> dict[str, str]:
        programs = Path(sys.executable).parent
        return {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "TMPDIR": str(self._temporary)}

    def _run(self, command: str, place: Path) -> None:
        try:
            result = subprocess.run(
                ["bash", "-c", command],
                cwd=place, env=self._environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=COMMAND_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{command}\nstill runs after {COMMAND_SECONDS:.0f} s: {late.output}") from None
        assert result.returncode == 0, f"{command}\nexit code {result.returncode}\n{result.stdout}{result.stderr}"


class Served:
    """A server's command, from its start until it has ended well: a context in which it answers."""

    def __init__(self, command: str, place: Path, environment: dict[str, str], port: int) -> None:
        self._command = command
        self._place = place
        self._environment = environment
        self._url = f"http://127.0.0.1:{port}/generate"
        self._log = place / f"server-{port}.log"

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {self._command}"],
                cwd=self._place, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, preexec_fn=can_be_interrupted,
            )  # fmt: skip
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._end()
        finally:
            self._kill()

    def _end(self) -> None:
        # As in a terminal, where Ctrl-C reaches every process of the foreground group.
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._said(f"still runs {END_SECONDS:.0f} s after Ctrl-C")) from None
        assert code == 0, self._said(f"ended with exit code {code} after Ctrl-C")
        assert "Traceback" not in self._log.read_text(errors="replace"), self._said("shows a traceback")

    def _wait_until_it_answers(self) -> None:
        until = time.monotonic() + READY_SECONDS
        while (answer := ask(self._url)) is None:
            assert self._process.poll() is None, self._said(f"ended with exit code {self._process.poll()}")
            assert time.monotonic() < until, self._said(f"did not answer within {READY_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)
        assert answer["text"], self._said(f"answered {answer}")

    def _said(self, what: str) -> str:
        return f"{self._command}\n{what}\n{log_tail(self._log)}"

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def ask(url: str) -> dict[str, Any] | None:
    """The answer of `/generate` to a question; None while nobody answers, or only says that it is not ready."""
    try:
        answer = requests.post(url, json=QUESTION, timeout=COMMAND_SECONDS)
    except OSError:
        return None
    if answer.status_code == SERVICE_UNAVAILABLE:
        return None
    answer.raise_for_status()
    return answer.json()
