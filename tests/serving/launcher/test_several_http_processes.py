"""Several processes for HTTP: what the launcher gives them, and how its supervisor looks after them."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from sglang_ascend_moe.serving.launcher import http_processes
from sglang_ascend_moe.serving.launcher.http_processes import APP, VARIABLE
from sglang_ascend_moe.serving.options import Options, attach


class Pipe:
    """The supervisor's end of a pipe to a process, and what that process has answered."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.answers: list[bool] = []
        self.closed = False

    def send(self, what: bytes) -> None:
        if self.closed:
            raise BrokenPipeError
        self.sent.append(what)

    def poll(self) -> bool:
        return bool(self.answers)

    def recv(self) -> bool:
        return self.answers.pop()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process of the supervisor that lives and has not answered."""
    monkeypatch.setattr(http_processes, "_named", True)
    return SimpleNamespace(parent_conn=Pipe(), process=SimpleNamespace(is_alive=lambda: True))


def is_alive(process: Any) -> bool | str:
    return http_processes.wait_for_start(lambda *_, **__: "uvicorn's answer", process, timeout=10)  # type: ignore[arg-type,return-value]


def test_a_process_that_starts_is_alive_until_it_ends(process: Any):
    assert [is_alive(process) for _ in range(3)] == [True] * 3
    assert process.parent_conn.sent == [b"ping"]
    process.process.is_alive = lambda: False
    process.parent_conn.closed = True
    assert is_alive(process) is False


def test_one_that_ends_before_it_is_asked_is_not(process: Any):
    process.process.is_alive = lambda: False
    process.parent_conn.closed = True
    assert is_alive(process) is False


def test_one_that_has_answered_once_is_asked_by_the_supervisor(process: Any):
    assert is_alive(process) is True
    process.parent_conn.answers.append(False)
    assert is_alive(process) is True
    assert is_alive(process) == "uvicorn's answer"
    assert process.parent_conn.sent == [b"ping"]


def test_processes_of_other_servers_are_left_to_the_supervisor(process: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(http_processes, "_named", False)
    assert is_alive(process) == "uvicorn's answer"


def test_the_app_is_named_for_servers_with_our_layer_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VARIABLE, "theirs:app")
    monkeypatch.setattr(http_processes, "_named", False)
    server_args = SimpleNamespace()
    http_processes.name_app(server_args)
    assert os.environ[VARIABLE] == "theirs:app"
    attach(server_args, Options())
    http_processes.name_app(server_args)
    assert os.environ[VARIABLE] == APP
