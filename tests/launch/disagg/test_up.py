"""`up` refuses what it cannot serve, and a member that ends takes the others with it and is named with its log."""

import io
import json
import os
import signal
import socket
from pathlib import Path

import msgspec
import psutil
import pytest

from sglang_ascend_moe.launch.disagg import disagg_command, running, up
from sglang_ascend_moe.launch.disagg.deployment import Deployment, Role
from sglang_ascend_moe.launch.disagg.deployment_events import Failed, Failure, Stopped, Teller
from sglang_ascend_moe.launch.disagg.running import Member, MemberFailed, RunningDeployment, cause
from sglang_ascend_moe.launch.servers import forked_server
from sglang_ascend_moe.launch.servers.server_process import ServerProcess, group_members
from sglang_ascend_moe.serving import owned_folder
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, WRONG_USAGE

CHILD_THAT_HAS_NOT_RUN = 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model-path is missing"),
        (["--model-path", "m", "--prefill", "0"], "prefill.instances: "),
        (["--model-path", "m", "--port", "99999"], "router.port: "),
        (["--file", "absent.toml"], "--file absent.toml"),
    ],
    ids=["no model", "no prefill server", "no port", "no file"],
)
def test_wrong_flags_are_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    assert disagg_command.main(["up", *arguments]) == WRONG_USAGE
    assert message in capsys.readouterr().err


def test_an_unknown_flag_is_named_with_what_to_do(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        disagg_command.main(["up", "--model-path", "m", "--page-size", "16"])
    assert ended.value.code == WRONG_USAGE
    told = capsys.readouterr().err
    assert told.startswith("ascend-moe disagg up: unrecognized arguments: --page-size 16")
    assert "`options` of a role of --file" in told


@pytest.mark.parametrize(
    ("words", "said"),
    [("--tp-size 3", "--tp-size 3: 8 experts cannot"), ("--secret-file no/such", "--secret-file 'no/such' cannot be")],
)
def test_what_servers_would_refuse_is_named_by_the_flag_that_was_typed(
    model: str, words: str, said: str, capsys: pytest.CaptureFixture[str]
):
    assert disagg_command.main(["up", "--model-path", model, *words.split()]) == WRONG_USAGE
    assert capsys.readouterr().err.startswith(f"ascend-moe disagg up: {said}")


def test_several_machines_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = tmp_path / "deployment.toml"
    file.write_text('model_path = "m"\n[decode]\ntp_size = 2\nnodes = 2\n')
    assert disagg_command.main(["up", "--file", str(file)]) == WRONG_USAGE
    assert "decode.nodes 2" in capsys.readouterr().err


def test_what_is_not_installed_is_named(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    find = up.importlib.util.find_spec
    monkeypatch.setattr(up.importlib.util, "find_spec", lambda name: None if name == "sglang_router" else find(name))
    assert disagg_command.main(["up", "--model-path", model, "--port", "0"]) == CANNOT
    assert "sglang_router is not installed: pip install 'sglang-ascend-moe[disagg]'" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_named_before_anything_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for model, said in (
        (str(tmp_path), "the folder holds no config.json"),
        (str(tmp_path / "absent"), "there is no such folder"),
        ("nobody/no-model", "there is no such folder, and the cache of the hub holds no such model; `up` downloads"),
        ("a/b/c", "there is no such folder"),
    ):
        assert disagg_command.main(["up", "--model-path", model, "--port", "0"]) == WRONG_USAGE
        assert f"ascend-moe disagg up: --model-path {model}: {said}" in capsys.readouterr().err
        file = tmp_path / "deployment.toml"
        file.write_text(f'model_path = "{model}"')
        assert disagg_command.main(["up", "--file", str(file), "--port", "0"]) == WRONG_USAGE
        assert f"--file {file}: model_path {model}: {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("prefill.options.page-sizee = 2", "prefill.options.page-sizee: the SGLang that is installed here has no flag"),
        ("prefill.tp_size = 3", "prefill.tp_size 3: 8 experts cannot be divided"),
        ("decode.options.quantization = 'fp8'", "decode.options.quantization fp8 does not work with --ascend-moe"),
        ("decode.options.ascend-moe-quant = 'int4'", "decode.options.ascend-moe-quant 'int4': choose one of"),
        ("router.host = '192.0.2.1'", "router.host 192.0.2.1: must be an address of this machine"),
    ],
)
def test_what_servers_would_refuse_is_named_by_its_key(
    model: str, tmp_path: Path, keys: str, said: str, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "deployment.toml"
    file.write_text(f'model_path = "{model}"\n{keys}')
    assert disagg_command.main(["up", "--file", str(file)]) == WRONG_USAGE
    assert capsys.readouterr().err.startswith(f"ascend-moe disagg up: --file {file}: {said}")


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A folder that passes for a model's."""
    (tmp_path / "config.json").write_text('{"num_experts": 8, "hidden_size": 64}')
    return str(tmp_path)


def test_a_port_in_use_is_named_before_anything_starts(model: str, capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert disagg_command.main(["up", "--model-path", model, "--port", str(port)]) == WRONG_USAGE
    assert f"--port {port}: another program listens at 127.0.0.1:{port}; give another" in capsys.readouterr().err


def test_a_folder_of_logs_that_cannot_be_made_is_named(model: str, capsys: pytest.CaptureFixture[str]):
    logs = f"{model}/config.json"
    arguments = ["up", "--model-path", model, "--port", "0", "--logs", logs]
    assert disagg_command.main(arguments) == WRONG_USAGE
    assert f"--logs {logs}: no folder can be made there" in capsys.readouterr().err


def test_flags_go_before_keys_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "deployment.toml"
    file.write_text('model_path = "m"\n[decode]\ntp_size = 4\n')
    found = []
    monkeypatch.setattr(up, "run", lambda parsed: found.append(up.deployment_asked(parsed)) or 0)
    disagg_command.main(["up", "--file", str(file), "--prefill", "2", "--tp-size", "2", "--mini-lb", "--port", "0"])
    (deployment,) = found
    assert (deployment.prefill.instances, deployment.prefill.tp_size, deployment.decode.tp_size) == (2, 2, 2)
    assert (deployment.router.kind, deployment.router.port) == ("mini-lb", 0)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "ended with exit code 1"),
        (-9, "was ended by SIGKILL"),
        (137, "was ended by SIGKILL"),
        (-15, "was ended by SIGTERM"),
    ],
)
def test_a_cause_is_a_signal_or_a_code(code: int, text: str):
    assert cause(code) == text


@pytest.fixture
def two_members(tmp_path: Path):
    """A deployment of two servers that serve files, and what it tells."""
    told = io.StringIO()
    deployment = RunningDeployment(Deployment(model_path="m"), tmp_path, Teller(as_json=True, to=told))
    for name in ("prefill-0", running.ROUTER):
        process = ServerProcess([], tmp_path / f"{name}.log", module="tests.launch.disagg.idle_server")
        deployment._begin(Member(name, None, process))
    try:
        yield deployment, told
    finally:
        deployment.stop(at_once=True)


@pytest.mark.parametrize("killed", ["prefill-0", running.ROUTER])
def test_a_member_that_ends_is_named_and_takes_the_others_with_it(two_members, killed: str):
    deployment, told = two_members
    deployment._wait_until_ready(60)
    members = list(deployment._members)
    victim = next(member for member in members if member.name == killed)
    victim.process._process.send_signal(signal.SIGKILL)
    with pytest.raises(MemberFailed) as failure, deployment:
        deployment.watch()
    event = failure.value.event
    assert (event.name, event.code, event.why) == (killed, Failure.SERVER_ENDED, "the server was ended by SIGKILL")
    assert "idle server is ready" in event.log_tail
    assert [pid for member in members for pid in group_members(member.process.pid)] == []
    assert [member.name for member in members if member.process.temporary.exists()] == []
    stopped = [json.loads(line) for line in told.getvalue().splitlines() if '"stopped"' in line]
    assert {event["name"] for event in stopped} == {"prefill-0", running.ROUTER}


def test_a_server_that_ends_because_its_port_is_taken_says_so(two_members, tmp_path: Path):
    deployment, _ = two_members
    deployment._wait_until_ready(60)
    port = deployment._members[0].process.port
    server = ServerProcess([], tmp_path / "server.log", module="tests.launch.disagg.idle_server", port=port)
    deployment._begin(Member("decode-0", "decode", server))
    server.wait_until_ended(60)
    with pytest.raises(MemberFailed, match=str(port)) as failure:
        deployment.watch()
    assert (failure.value.event.name, failure.value.event.code) == ("decode-0", Failure.PORT_TAKEN)


def test_instances_on_npus_have_npus_of_their_own_and_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun: list[Member] = []
    monkeypatch.setattr(RunningDeployment, "_begin", lambda _, member: begun.append(member))
    monkeypatch.setattr(RunningDeployment, "_wait_until_ready", lambda *_: None)
    monkeypatch.setattr(RunningDeployment, "_compare_instances", lambda _: None)
    role = Role(tp_size=2)
    deployment = Deployment(model_path="m", prefill=msgspec.structs.replace(role, instances=2), decode=role)
    RunningDeployment(deployment, tmp_path, Teller(as_json=True, to=io.StringIO()), "ascend").start_instances(1)
    words = [member.process._arguments for member in begun]
    assert [flags[flags.index("--base-gpu-id") + 1] for flags in words] == ["0", "2", "4"]
    assert [flags[flags.index("--device") + 1] for flags in words] == ["npu"] * 3
    assert len({member.process._variables[running.KV_STORE] for member in begun}) == 1


def test_events_are_lines_of_json_or_of_text():
    for event in (
        Failed(name="decode-0", code=Failure.SERVER_ENDED, why="was ended by SIGKILL", log="l", log_tail="the end"),
        Stopped(name="router", by_itself=False),
    ):
        as_json, as_text = io.StringIO(), io.StringIO()
        Teller(as_json=True, to=as_json)(event)
        Teller(as_json=False, to=as_text)(event)
        assert json.loads(as_json.getvalue())["event"] == type(event).__name__.lower()
        assert event.name in as_text.getvalue()


def test_a_forked_server_has_a_log_as_soon_as_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is shown when the child ends, which may be before it has run."""
    monkeypatch.setattr(forked_server, "require_one_thread", lambda: None)
    monkeypatch.setattr(os, "fork", lambda: CHILD_THAT_HAS_NOT_RUN)
    monkeypatch.setattr(psutil, "Process", lambda pid: pid)
    server = forked_server.ForkedServer([], tmp_path / "server.log")
    server.start()
    assert server._process == CHILD_THAT_HAS_NOT_RUN
    assert (tmp_path / "server.log").read_bytes() == b""
    owned_folder.remove(server.temporary)


def test_a_library_that_mooncake_lacks_is_named_with_its_package(monkeypatch):
    assert up.missing_library() == ""
    monkeypatch.setitem(up.MOONCAKE_LIBRARIES, "libabsent.so.1", "libabsent1")
    assert up.missing_library() == (
        "mooncake needs libabsent.so.1, which is not installed (Debian: apt-get install libabsent1)"
    )
