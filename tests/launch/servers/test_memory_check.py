"""A model that cannot fit into the memory of this host is refused before anything heavy is imported."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.launch.servers import memory_check
from sglang_ascend_moe.launch.servers.memory_check import check_memory, server_sizes
from sglang_ascend_moe.launch.servers.serve_request import ServeRequest, request_of
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.host.memory_share import GIB, MIB, MemoryLeft, share_of_ranks
from sglang_ascend_moe.serving.launcher import given_flags

HUGE = 2**50


def request(model: Path, *flags: str) -> ServeRequest:
    return request_of(given_flags.read(["--model-path", str(model), "--ascend-moe", *flags]))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """A checkpoint whose weights take a pebibyte in memory and nothing on disk."""
    folder = write_checkpoint(tmp_path / "huge")
    header = {
        "model.layers.0.mlp.experts.0.up_proj.weight": {"dtype": "BF16", "shape": [HUGE // 2], "data_offsets": [0, 0]}
    }
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    return folder


def test_a_model_that_fits_is_not_refused(checkpoint: Path):
    check_memory([request(checkpoint, "--tp-size", "2")])


def test_a_model_that_does_not_fit_is_refused_with_the_numbers(huge: Path):
    with pytest.raises(Unsupported, match=r"huge does not fit: 2 ranks need at least 10485\d\d\.\d GiB"):
        check_memory([request(huge, "--tp-size", "2")])


def test_a_server_for_npus_is_not_looked_at(huge: Path):
    check_memory([request(huge, "--device", "npu")])


def test_the_first_node_answers_for_all(huge: Path):
    nodes = ["--tp-size", "2", "--nnodes", "2", "--dist-init-addr", "127.0.0.1:5000", "--node-rank"]
    with pytest.raises(Unsupported, match=r"huge does not fit: 2 ranks need"):
        check_memory([request(huge, *nodes, "0")])
    check_memory([request(huge, *nodes, "1")])


def test_servers_of_one_command_each_get_the_part_of_their_ranks(checkpoint: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(memory_check, "memory_left", lambda *_, **__: MemoryLeft(40 * GIB, "this machine"))
    monkeypatch.setattr(
        memory_check, "refuse_server_that_does_not_fit", lambda _estimate, left, _model: asked.append(left)
    )
    check_memory([request(checkpoint, "--tp-size", "1"), request(checkpoint, "--tp-size", "3")])
    usable = MemoryLeft(40 * GIB, "this machine").usable
    assert [left.usable for left in asked] == [usable // 4, usable * 3 // 4]


def test_what_the_user_gives_to_a_server_goes_before_its_part(checkpoint: Path):
    flags = ["--ascend-moe-host-memory", "64MiB"]
    with pytest.raises(Unsupported, match="--ascend-moe-host-memory leaves 64 MiB"):
        check_memory([request(checkpoint, *flags), request(checkpoint)])


def test_a_part_is_never_nothing():
    assert share_of_ranks(MemoryLeft(MIB, "this machine"), 1, 4) == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--tp-size", "4"], {"ranks": 4, "attention_ranks": 4, "graph_batch": None}),
        (["--tp-size", "4", "--dp-size", "4", "--enable-dp-attention"], {"ranks": 4, "attention_ranks": 1}),
        (["--tp-size", "2", "--dp-size", "2"], {"ranks": 4, "attention_ranks": 2}),
        (["--disable-cuda-graph"], {"graph_batch": 0}),
        (["--cuda-graph-bs-decode", "2", "8"], {"graph_batch": 8}),
        (["--cuda-graph-max-bs-decode", "16"], {"graph_batch": 16}),
        (["--disaggregation-mode", "prefill"], {"graph_batch": 0}),
        (["--max-running-requests", "7", "--chunked-prefill-size", "99"], {"running": 7, "prefill_tokens": 99}),
        (["--chunked-prefill-size", "-1"], {"prefill_tokens": memory_check.LEAST_CHUNK}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_flags_say_how_a_server_divides_its_model(flags: list[str], expected: dict[str, object]):
    sizes = server_sizes(request(Path("model"), *flags))
    assert {name: getattr(sizes, name) for name in expected} == expected


def test_serve_refuses_it_with_exit_code_3_and_one_line_and_imports_nothing_heavy(huge: Path):
    code = (
        "import sys\n"
        "from sglang_ascend_moe.launch.main import main\n"
        "try:\n"
        f"    code = main(['serve', {str(huge)!r}, '--tp-size', '2'])\n"
        "except SystemExit as ended:\n"
        "    code = ended.code\n"
        "print(code, sorted({'torch', 'sglang'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "3 []", result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("ascend-moe serve: ")
    assert "does not fit" in line
