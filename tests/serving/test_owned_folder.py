"""Temporary folders go with the processes that own them, and what killed ones left is removed by the next."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sglang_ascend_moe.serving import owned_folder

OWNER = """
import subprocess, sys, time
from sglang_ascend_moe.serving import owned_folder
folder = owned_folder.make()
if sys.argv[1:]:
    subprocess.Popen(["sleep", "600"], pass_fds=[owned_folder.descriptor_of(folder)])
print(folder, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def start(*words: str) -> tuple[subprocess.Popen, Path]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, *words], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_folder_is_removed_by_its_owner(temporary: Path):
    folder = owned_folder.make()
    assert folder.parent == temporary
    assert folder.name.startswith(owned_folder.PREFIX)
    owned_folder.remove(folder)
    owned_folder.remove(folder)
    assert list(temporary.iterdir()) == []


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one():
    process, folder = start()
    (folder / "socket").touch()
    owned_folder.remove_abandoned()
    assert folder.is_dir(), "its owner lives"
    end(process)
    assert folder.is_dir()
    mine = owned_folder.make()
    assert not folder.exists()
    owned_folder.remove(mine)


def test_a_folder_stays_while_another_process_owns_it_too():
    process, folder = start("with another")
    process.kill()
    process.wait()
    owned_folder.remove_abandoned()
    assert folder.is_dir()
    end(process)
    # The other one, whose parent is gone, cannot be waited for.
    while folder.exists():
        owned_folder.remove_abandoned()


def test_what_is_no_folder_of_ours_stays(temporary: Path):
    (temporary / "sglang-file").touch()
    (temporary / "sglang-link").symlink_to(temporary)
    (temporary / "other").mkdir()
    owned_folder.remove_abandoned()
    assert sorted(path.name for path in temporary.iterdir()) == ["other", "sglang-file", "sglang-link"]
