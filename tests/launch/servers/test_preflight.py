"""What is wrong with a server is said before SGLang is imported, with the argument that was typed."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from sglang_ascend_moe.errors import AscendMoeError, InvalidInput
from sglang_ascend_moe.exchange.control.network import PORTS_AFTER
from sglang_ascend_moe.launch.servers import preflight
from sglang_ascend_moe.launch.servers.preflight import check_server, find_config
from sglang_ascend_moe.launch.servers.server_process import free_port
from tests.http_server import serving

MOE = {"num_experts": 8, "num_experts_per_tok": 2, "hidden_size": 64}

LOCAL = ["--port", "0"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return folder_with(tmp_path / "model", MOE)


def folder_with(folder: Path, config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


def said_of(words: list[str]) -> str:
    """What is refused, empty if nothing is."""
    try:
        check_server(words)
    except AscendMoeError as refusal:
        return str(refusal)
    return ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("", ""),
        ("--tp 2 --ascend-moe-timeout=5", ""),
        ("--tp-sizee 2", "unrecognized arguments: --tp-sizee 2; did you mean --tp-size?"),
        ("--tp-size 0", "--tp-size 0: must be at least 1"),
        ("--dtype bf16", "--dtype: invalid choice: 'bf16' (choose from 'auto', 'half', 'float16', 'bfloat16', "),
        ("--attention-backend known_to_a_plugin", ""),
        ("--tp-size two", "--tp-size: invalid int value: 'two'"),
        ("--ascend-moe-quant int4", "--ascend-moe-quant 'int4': choose one of none, int8"),
        (
            "--ascend-moe-windw-bytes 3",
            "unrecognized arguments: --ascend-moe-windw-bytes 3; did you mean --ascend-moe-w",
        ),
        ("--ascend-moe-secret-file /no/secret", "--ascend-moe-secret-file '/no/secret' cannot be opened"),
        ("--dcp-size 2", "--dcp-size 2 does not work with --ascend-moe"),
        ("--moe-a2a-backend mori", "--moe-a2a-backend mori: --ascend-moe is such a backend itself"),
        ("--tp-size 3", "--tp-size 3: 8 experts cannot be divided among so many ranks"),
        ("--init-expert-location [1,2]", "--init-expert-location [1,2]: must be an object in JSON"),
        ("--init-expert-location /no/file.pt", "--init-expert-location /no/file.pt: must be a file that can be read"),
        ("--json-model-override-args {", "--json-model-override-args {: must be an object in JSON"),
        ("--port 70000", "--port 70000: must be a port from 0 to 65535"),
        ("--host 192.0.2.1", "--host 192.0.2.1: must be an address of this machine"),
        ("--tp 2 --nnodes 2", "--nnodes 2: give --dist-init-addr HOST:PORT"),
        ("--tp 2 --nnodes 2 --dist-init-addr 5000", "--dist-init-addr '5000': write HOST:PORT"),
        ("--tp 2 --nnodes 2 --dist-init-addr 192.0.2.1:5000", "--dist-init-addr 192.0.2.1: must be an address of this"),
        ("--tp 2 --nnodes 2 --dist-init-addr 192.0.2.1:5000 --node-rank 1", ""),
        ("--tp 2 --nnodes 2 --dist-init-addr 127.0.0.1:65530", "--dist-init-addr 65536: must be a port from 0 to"),
        ("--host no.such.name.invalid", "--host no.such.name.invalid: must be an address of this machine"),
    ],
    ids=lambda value: value[:40] or "nothing",
)
def test_flags_values_conflicts_and_addresses_are_looked_at(model: Path, words: str, said: str):
    found = said_of(["--ascend-moe", "--model-path", str(model), *LOCAL, *words.split()])
    assert found.startswith(said)
    assert bool(found) == bool(said)


@pytest.mark.parametrize("flag", ["--port", "--disaggregation-bootstrap-port"])
def test_a_port_that_is_taken_is_named_with_its_address(model: Path, flag: str):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        words = ["--model-path", str(model), *LOCAL, "--disaggregation-mode", "prefill", flag, str(port)]
        assert said_of(words) == f"{flag} {port}: another program listens at 127.0.0.1:{port}; give another"
        if flag == "--disaggregation-bootstrap-port":
            # Others do not listen there.
            assert said_of([*words, "--disaggregation-mode", "decode"]) == ""
            assert said_of([*words, "--nnodes", "2", "--node-rank", "1"]) == ""


@pytest.mark.parametrize("after", [0, PORTS_AFTER])
def test_the_ports_at_which_launchers_meet_are_those_of_node_0(model: Path, after: int):
    first = free_port(PORTS_AFTER)
    port = first + after
    with socket.create_server(("127.0.0.1", port)):
        words = ["--model-path", str(model), *LOCAL, "--nnodes", "2", "--dist-init-addr", f"127.0.0.1:{first}"]
        said = f"--dist-init-addr {port}: another program listens at 127.0.0.1:{port}; give another"
        assert said_of(words) == said
        assert said_of([*words, "--node-rank", "1"]) == ""


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{", "--model {file}: {file} is not JSON"),
        ("[]", "--model {file}: {file} holds no configuration"),
        ({"hidden_size": 64}, "{folder} is not a mixture-of-experts model: serve it without --ascend-moe"),
        ({**MOE, "hidden_size": 65}, "the rows of {folder} have 65 elements"),
        ({**MOE, "quantization_config": {"quant_method": "fp8"}}, "the checkpoint {folder} is quantised (fp8)"),
        ({"text_config": MOE}, ""),
        ({"part_of_a_new_family": MOE}, ""),
    ],
    ids=["no JSON", "no object", "dense", "odd rows", "quantised", "inner", "inner, unknown"],
)
def test_a_model_that_cannot_be_served_is_refused(tmp_path: Path, config: Any, said: str):
    folder = folder_with(tmp_path / "model", config)
    found = said_of(["--ascend-moe", f"--model={folder}", *LOCAL])
    assert found.startswith(said.format(folder=folder, file=folder / "config.json"))
    assert bool(found) == bool(said)


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(folder / "config.json")
    assert said_of(["--ascend-moe", "--model-path", str(folder)]).startswith(
        f"--model-path {folder / 'config.json'}: Too many levels of symbolic links"
    )


def test_a_file_of_a_model_is_not_its_folder(model: Path):
    config = model / "config.json"
    said = f"--model-path {config}: this is a file; give the folder of a model"
    assert said_of(["--ascend-moe", "--model-path", str(config)]) == said


def test_without_the_package_any_model_is_let_through(tmp_path: Path):
    assert said_of(["--model-path", str(folder_with(tmp_path / "model", {"hidden_size": 65})), *LOCAL]) == ""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("/no/such/folder", "there is no such folder"),
        ("../model", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("nobody/no-model", "there is no such folder, and the cache of the hub holds no such model; HF_HUB_OFFLINE is"),
    ],
)
def test_a_model_that_is_not_there_is_named_with_what_was_typed(monkeypatch: pytest.MonkeyPatch, model: str, said: str):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for words in (["--model", model], [f"--model-path={model}"]):
        assert said_of(words).startswith(f"{words[0].partition('=')[0]} {model}: {said}")
    with pytest.raises(InvalidInput, match=f"^MODEL {model}: "):
        check_server(["--model-path", model], "MODEL")


def test_what_sglang_fetches_or_reads_in_another_way_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "model.gguf").touch()
    (tmp_path / "model").write_bytes(b"GGUF...")
    for model in ("s3://bucket/model", *(str(tmp_path / name) for name in ("model.gguf", "model", ""))):
        assert find_config(model, "--model-path", offline="no network") is None
    monkeypatch.setenv("SGLANG_USE_MODELSCOPE", "true")
    assert find_config("nobody/no-model", "--model-path", offline="no network") is None


class Hub(BaseHTTPRequestHandler):
    """Has `known/model`, and what may be there for others."""

    def do_HEAD(self) -> None:
        codes = {"/known/model/resolve/main/config.json": 200, "/secret/model/resolve/main/config.json": 401}
        self.send_response(codes.get(self.path, 404))
        self.end_headers()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setattr(preflight, "HUB_SECONDS", 60.0)
    with serving(Hub) as port:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        yield f"http://127.0.0.1:{port}"


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("model", ["known/model", "secret/model"])
def test_a_model_that_the_hub_may_have_is_left_to_sglang(model: str):
    assert find_config(model, "--model-path") is None


def test_a_model_that_the_hub_has_not_is_refused(hub: str):
    with pytest.raises(InvalidInput, match=f"holds no such model; {hub} has none either"):
        find_config("nobody/no-model", "--model-path")


@pytest.mark.usefixtures("hub")
def test_a_hub_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    with pytest.raises(InvalidInput, match=rf"http://127.0.0.1:{port} cannot be reached \(Connection refused\)"):
        find_config("nobody/no-model", "--model-path")


def test_a_model_in_the_cache_of_the_hub_is_looked_at(tmp_path: Path):
    snapshot = tmp_path / "hub" / "models--known--model" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"hidden_size": 64}')
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123")
    done = run_serve("known/model --port 0", tmp_path, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1")
    assert done.stderr == (
        "ascend-moe serve: known/model is not a mixture-of-experts model: serve it without --ascend-moe\n"
    )


def run_serve(words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sglang_ascend_moe.launch.main", "serve", *shlex.split(words)]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.usefixtures("model")
def test_serve_says_it_in_one_line_and_ends_with_2(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = run_serve(f"model --port {port}", tmp_path)
    said = f"ascend-moe serve: --port {port}: another program listens at 127.0.0.1:{port}; give another\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.usefixtures("model")
def test_npus_without_their_library_are_refused_before_sglang_is_imported(tmp_path: Path):
    done = run_serve("model --port 0 --device npu", tmp_path)
    said = "ascend-moe serve: --device npu: torch_npu is not installed. "
    assert (done.returncode, done.stdout, done.stderr[: len(said)]) == (3, "", said)
    assert len(done.stderr.splitlines()) == 1
