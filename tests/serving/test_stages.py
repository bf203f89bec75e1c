"""A starting server says how far it is to whoever started it, and to nobody else."""

import os
import shutil
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.servers.server_process import ServerProcess
from sglang_ascend_moe.serving.stages import VARIABLE, Stage, furthest, telling


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "stages"
    path.touch()
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def test_a_server_that_has_said_nothing_is_imported(told: Path):
    assert furthest(told) is Stage.IMPORTING


def test_the_furthest_of_all_processes_counts(told: Path):
    said = [Stage.CONNECTING, Stage.ALLOCATING, Stage.LOADING]
    for stage in said:
        if (child := os.fork()) == 0:
            telling(stage)("of a hooked function", keyword=True)
            os._exit(0)
        os.waitpid(child, 0)
    assert furthest(told) is Stage.ALLOCATING


def test_a_server_that_has_removed_its_folder_is_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    server = ServerProcess([], tmp_path / "log")
    server.make_temporary()
    monkeypatch.setenv(VARIABLE, server.environment[VARIABLE])
    telling(Stage.LOADING)()
    assert server.stage is Stage.LOADING
    shutil.rmtree(server.temporary)
    assert server.stage is Stage.LOADING


def test_a_server_that_nobody_watches_says_nothing(told: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(VARIABLE)
    telling(Stage.LOADING)()
    assert told.read_bytes() == b""


def test_a_server_whose_starter_has_gone_goes_on(told: Path):
    told.unlink()
    telling(Stage.LOADING)()
    assert not told.exists()
