"""Processes of a run that need the same wheel at once do not meet in the folder into which pip copies it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from tests.npu.device import build
from tests.versions import appendix, npu_wheels

NAME = "sglang-1.2.3-py3-none-any.whl"


def of_npus(folder: Path) -> list[str]:
    return sorted(npu_wheels.download.__wrapped__("sglang", folder).names)


def of_sglang(folder: Path) -> list[str]:
    return ZipFile(appendix.download("1.2.3", folder)).namelist()


@pytest.mark.parametrize("download", [of_npus, of_sglang])
def test_who_comes_second_waits_until_a_wheel_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: Callable[[Path], list[str]]
):
    with ZipFile(tmp_path / NAME, "w") as wheel:
        wheel.writestr("module.py", "")
    whole, folder = (tmp_path / NAME).read_bytes(), tmp_path / "folder"
    begun, both_are_there, asked = threading.Event(), threading.Event(), threading.Semaphore(0)
    lock = build.fcntl.flock

    def copy(*_: Any, **__: Any) -> subprocess.CompletedProcess:
        if not (folder / NAME).exists():
            (folder / NAME).write_bytes(whole[:-1])
            begun.set()
            assert both_are_there.wait(60)
            (folder / NAME).write_bytes(whole)
        return subprocess.CompletedProcess([], 0, NAME, "")

    def ask(*arguments: Any) -> None:
        asked.release()
        lock(*arguments)

    monkeypatch.setattr(build.fcntl, "flock", ask)
    monkeypatch.setattr(subprocess, "run", copy)
    found: list[list[str]] = []
    processes = [threading.Thread(target=lambda: found.append(download(folder))) for _ in range(2)]
    processes[0].start()
    assert begun.wait(60)
    processes[1].start()
    assert asked.acquire(timeout=60)
    assert asked.acquire(timeout=60)
    both_are_there.set()
    for process in processes:
        process.join()
    assert found == [["module.py"]] * 2
