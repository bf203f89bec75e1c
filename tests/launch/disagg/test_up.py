"""`up` refuses what it cannot serve, and a member that ends takes the others with it and is named with its log."""

import io
import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import psutil
import pytest

from sglang_ascend_moe.exchange.control.network import PORTS_AFTER
from sglang_ascend_moe.launch.disagg import disagg_command, running, up
from sglang_ascend_moe.launch.disagg.deployment import Deployment, Role
from sglang_ascend_moe.launch.disagg.deployment_events import Failed, Failure, Stopped, Teller
from sglang_ascend_moe.launch.disagg.running import Member, MemberFailed, RunningDeployment, cause
from sglang_ascend_moe.launch.disagg.server_flags import Target
from sglang_ascend_moe.launch.servers import forked_server
from sglang_ascend_moe.launch.servers.server_process import ServerProcess, group_members, is_taken
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


class Interrupted:
    """Stands in for a server, which runs until it is interrupted, or has ended with `exit_code`."""

    found_port_taken = False

    def __init__(self, name: str, log: Path, said: list[str], exit_code: int | None = None) -> None:
        self.name, self.log, self.exit_code, self._said = name, log, exit_code, said

    def interrupt(self) -> None:
        self._said.append(f"{self.name} is interrupted")
        self.exit_code = 0

    def stop(self) -> bool:
        self._said.append(f"{self.name} has ended")
        return True


def two_nodes(folder: Path, said: list[str], *exit_codes: int | None) -> RunningDeployment:
    """The nodes of a prefill instance, node 1 begun first."""
    (folder / "log").touch()
    deployment = RunningDeployment(Deployment(model_path="m"), folder, Teller(as_json=True, to=io.StringIO()))
    for node, code in enumerate(exit_codes):
        process = Interrupted(f"node {node}", folder / "log", said, code)
        deployment._members.insert(0, Member(f"prefill-0-node-{node}", "prefill", process, 1, node))
    return deployment


def test_other_nodes_are_stopped_by_node_0(tmp_path: Path):
    said: list[str] = []
    two_nodes(tmp_path, said, None, None).stop(at_once=False)
    assert said == ["node 0 is interrupted", "node 0 has ended", "node 1 has ended"]


@pytest.mark.parametrize(("codes", "named"), [((1, -9), 1), ((-9, 1), 0), ((None, 1), 1)])
def test_of_nodes_that_end_together_the_killed_one_is_named(tmp_path: Path, codes: tuple[int | None, ...], named: int):
    with pytest.raises(MemberFailed) as failure:
        two_nodes(tmp_path, [], *codes).watch()
    assert failure.value.event.name == f"prefill-0-node-{named}"


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Deployment, Target], list[Member]]:
    """The servers that a deployment would start."""

    def members(deployment: Deployment, target: Target) -> list[Member]:
        found: list[Member] = []
        monkeypatch.setattr(RunningDeployment, "_begin", lambda _, member: found.append(member))
        monkeypatch.setattr(RunningDeployment, "_wait_until_ready", lambda *_: None)
        monkeypatch.setattr(RunningDeployment, "_compare_instances", lambda _: None)
        RunningDeployment(deployment, tmp_path, Teller(as_json=True, to=io.StringIO()), target).start_instances(1)
        return found

    return members


def values(members: list[Member], flag: str) -> list[str]:
    words = [member.process._arguments for member in members]
    return [given[given.index(flag) + 1] for given in words if flag in given]


def test_instances_on_npus_have_npus_of_their_own_and_one_store(begun):
    role = Role(tp_size=2)
    members = begun(
        Deployment(model_path="m", prefill=msgspec.structs.replace(role, instances=2), decode=role), "ascend"
    )
    assert values(members, "--base-gpu-id") == ["0", "2", "4"]
    assert values(members, "--device") == ["npu"] * 3
    assert len({member.process._variables[running.KV_STORE] for member in members}) == 1


@pytest.mark.parametrize("target", ["host", "ascend"])
def test_each_node_of_an_instance_has_a_launcher_and_node_0_answers(begun, target: Target):
    members = begun(Deployment(model_path="m", prefill=Role(tp_size=4, nodes=2), decode=Role(tp_size=2)), target)
    assert [member.name for member in members] == ["prefill-0-node-1", "prefill-0-node-0", "decode-0"]
    nodes, decode = members[:2], members[2]
    assert (values(nodes, "--nnodes"), values(nodes, "--node-rank")) == (["2", "2"], ["1", "0"])
    [address] = set(values(nodes, "--dist-init-addr"))
    host, port = address.split(":")
    assert host == "127.0.0.1"
    assert [taken for taken in range(PORTS_AFTER + 1) if is_taken(host, int(port) + taken)] == []
    assert len({member.process.port for member in members}) == len(members)
    assert len(set(values(nodes, "--disaggregation-bootstrap-port"))) == 1
    assert [member.process._variables.get("GLOO_SOCKET_IFNAME") for member in members] == ["lo", "lo", None]
    assert values([decode], "--nnodes") == []
    if target == "ascend":
        assert values(members, "--base-gpu-id") == ["2", "0", "4"]


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
