"""Names of sockets are in a folder that goes with the process that launched the server, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from sglang_ascend_moe.serving.launcher import socket_folder
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, INTERRUPTED, OK
from sglang_ascend_moe.serving.options import Options, attach

LAUNCHER = """
import os, signal, sys, tempfile
from types import SimpleNamespace
from sglang_ascend_moe.serving.launcher import ending, interrupts, socket_folder
from sglang_ascend_moe.serving.options import Options, attach

interrupts.watch("the server")
server_args = SimpleNamespace(nnodes=1)
attach(server_args, Options())
ports = SimpleNamespace(rpc_ipc_name=f"ipc://{tempfile.NamedTemporaryFile(delete=False).name}")
socket_folder.move_names(ports, server_args)
ending.make_room_for_reports(object, server_args)
print(os.listdir(tempfile.gettempdir()) == [os.path.basename(os.path.dirname(ports.rpc_ipc_name))], flush=True)
"""
ENDS = {
    "by itself": ("", OK),
    "by an exception": ("raise SystemExit(7)", 7),
    "by Ctrl-C": (f"os.kill(os.getpid(), {signal.SIGINT:d})", INTERRUPTED),
    "by SIGTERM": (f"os.kill(os.getpid(), {signal.SIGTERM:d})", INTERRUPTED),
    "because a rank failed": ("ending.end_by_name(lambda *_: None, os.getpid())", CHECK_FAILED),
    "after its engine was shut down": ("ending.end_by_name(lambda *_: None, os.getpid(), False)", OK),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_launcher_that_ends_leaves_nothing(tmp_path: Path, end: str):
    program, code = ENDS[end]
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER + program], env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, "True\n"), done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Ports as SGLang's PortArgs has them, in a temporary directory of their own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).touch()
    return SimpleNamespace(
        tokenizer_ipc_name=f"ipc://{tmp_path}/one", rpc_ipc_name=f"ipc://{tmp_path}/two", nccl_port=5000,
        metrics_ipc_name="tcp://127.0.0.1:5001", tokenizer_worker_ipc_name=None, load_collector_ipc_name="",
    )  # fmt: skip


def test_only_names_of_files_move_and_all_into_one_folder(ports: SimpleNamespace, tmp_path: Path):
    server_args = SimpleNamespace()
    attach(server_args, Options())
    before = vars(ports).copy()
    socket_folder.move_names(ports, server_args)
    [folder] = tmp_path.iterdir()
    moved = {"tokenizer_ipc_name": f"ipc://{folder}/one", "rpc_ipc_name": f"ipc://{folder}/two"}
    assert vars(ports) == before | moved
    assert sorted(path.name for path in folder.iterdir()) == ["one", "two"]
    socket_folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_server_without_our_layer_keeps_its_names(ports: SimpleNamespace):
    before = vars(ports).copy()
    socket_folder.move_names(ports, SimpleNamespace())
    assert vars(ports) == before
