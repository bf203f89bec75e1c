"""What `render` writes for Ascend: valid files for every machine, flags that SGLang knows, windows that fit.

`test_render_refusals` has what is refused, and what SGLang makes of the commands.
"""

import argparse
import itertools
import json
import shlex
import subprocess
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml

from sglang_ascend_moe.launch.disagg import disagg_command
from sglang_ascend_moe.launch.disagg.ascend import NOT_RUN
from sglang_ascend_moe.launch.disagg.deployment import Deployment, Router, read_deployment
from sglang_ascend_moe.launch.disagg.deployment_events import Teller
from sglang_ascend_moe.launch.disagg.render import TARGETS
from sglang_ascend_moe.launch.disagg.running import Member, RunningDeployment
from sglang_ascend_moe.launch.disagg.server_flags import NodePlace, server_flags
from sglang_ascend_moe.launch.plan.moe_config import MODELSLIM_FILE, read_moe_shape
from sglang_ascend_moe.launch.servers.server_process import ServerProcess
from sglang_ascend_moe.serving.launcher.conflicts import CONFLICTS
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE
from sglang_ascend_moe.serving.options import FLAGS, Options
from sglang_ascend_moe.serving.worker.sizing import SchedulerLimits, sized
from sglang_ascend_moe.windows.layout import ExchangeParameters, plan_window
from tests.launch.disagg.kubernetes_schema import COMPOSE, MANIFEST
from tests.packaging.source_tree import ROOT

EXAMPLES = sorted((ROOT / "launch" / "examples").glob("*.toml"))
ASCEND_EXAMPLES = [path for path in EXAMPLES if path.name.startswith("a3_")]
# Of the published config.json of Qwen3-235B-A22B, and of DeepSeek-V3 and R1 with W8A8 weights.
CONFIGS = {
    "qwen3-moe": {"hidden_size": 4096, "num_experts": 128, "num_experts_per_tok": 8, "torch_dtype": "bfloat16"},
    "deepseek-v3": {"hidden_size": 7168, "n_routed_experts": 256, "num_experts_per_tok": 8, "torch_dtype": "bfloat16"},
}
CONFIGS["deepseek-r1"] = CONFIGS["deepseek-v3"]
QUANTISED = {"deepseek-v3", "deepseek-r1"}
by_name = pytest.mark.parametrize("example", ASCEND_EXAMPLES, ids=lambda path: path.stem)


DEPLOYMENTS = {path.stem: read_deployment(path) for path in ASCEND_EXAMPLES}
every_deployment = pytest.mark.parametrize("deployment", DEPLOYMENTS.values(), ids=DEPLOYMENTS)
every_target = pytest.mark.parametrize("target", TARGETS)


def write_config(deployment: Deployment, folder: Path) -> Path:
    """The config of a deployment's model, alone in a folder."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[deployment.name]))
    if deployment.name in QUANTISED:
        (folder / MODELSLIM_FILE).write_text("{}")
    return folder / "config.json"


def render(example: Path, target: str, folder: Path) -> dict[str, str]:
    """The files that `render` writes, by name."""
    config = write_config(read_deployment(example), folder / "model")
    out = folder / "out"
    command = ["render", "--target", target, "--file", str(example), "--model-config", str(config)]
    assert disagg_command.main([*command, "--output", str(out)]) == OK
    return {path.name: path.read_text() for path in sorted(out.iterdir())}


def rendered(deployment: Deployment, target: str, folder: Path) -> dict[str, str]:
    """What would be written, whether or not it is served."""
    shape = read_moe_shape(write_config(deployment, folder / "model"))
    return dict(sorted(TARGETS[target](deployment, shape).items()))


def command_lines(files: dict[str, str]) -> list[list[str]]:
    """Every command of rendered files of any kind."""
    found = []
    for name, text in files.items():
        if name.endswith(".sh"):
            found.append(shlex.split(text[text.index("exec ") :].replace("\\\n", " "))[1:])
        elif name.endswith(".compose.yaml"):
            found += [service["command"] for service in yaml.safe_load(text)["services"].values()]
        else:
            found += [container["command"] for pod in pods(text) for container in pod["containers"]]
    return found


def pods(text: str) -> list[dict]:
    templates = []
    for document in yaml.safe_load_all(text):
        match document["kind"]:
            case "LeaderWorkerSet":
                group = document["spec"]["leaderWorkerTemplate"]
                templates += [group["leaderTemplate"], group["workerTemplate"]]
            case "Deployment":
                templates.append(document["spec"]["template"])
    return [template["spec"] for template in templates]


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.fixture(scope="module")
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parsers of the installed SGLang server, with our flags, and of the router."""
    from sglang.srt.server_args import ServerArgs
    from sglang_router.router_args import RouterArgs

    from sglang_ascend_moe.serving.options import add_flags

    server = argparse.ArgumentParser(exit_on_error=False)
    ServerArgs.add_cli_args(server)
    # In a process that has loaded the plugin SGLang's parser has them already.
    if not any(FLAGS["schedule"].flag in action.option_strings for action in server._actions):
        add_flags(server)
    router = argparse.ArgumentParser(exit_on_error=False)
    RouterArgs.add_cli_args(router, use_router_prefix=False)
    return {"sglang.launch_server": server, "sglang_router.launch_router": router}


@every_target
@by_name
def test_what_is_rendered_is_written(example: Path, target: str, tmp_path: Path):
    (tmp_path / "below").mkdir()
    assert render(example, target, tmp_path) == rendered(read_deployment(example), target, tmp_path / "below")


@every_target
@every_deployment
def test_every_flag_is_known_to_the_installed_sglang(deployment: Deployment, target: str, tmp_path: Path, parsers):
    commands = command_lines(rendered(deployment, target, tmp_path))
    assert {command[2] for command in commands} == set(parsers)
    for python, dash, module, *arguments in commands:
        assert (python, dash) == ("python", "-m")
        # Kubernetes puts numbers in place of these.
        filled = [word.replace("$(LWS_WORKER_INDEX)", "1").replace("$(LWS_LEADER_ADDRESS)", "h") for word in arguments]
        _, unknown = parsers[module].parse_known_args(filled)
        assert unknown == []


@every_deployment
def test_scripts_are_shell(deployment: Deployment, tmp_path: Path):
    files = rendered(deployment, "shell", tmp_path)
    for text in files.values():
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)


@every_deployment
def test_compose_files_have_the_keys_of_compose(deployment: Deployment, tmp_path: Path):
    for text in rendered(deployment, "compose", tmp_path).values():
        jsonschema.validate(yaml.safe_load(text), COMPOSE)


@every_deployment
def test_manifests_have_the_fields_of_kubernetes(deployment: Deployment, tmp_path: Path):
    (text,) = rendered(deployment, "k8s", tmp_path).values()
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        jsonschema.validate(document, MANIFEST)
    assert [document["kind"] for document in documents] == [
        "LeaderWorkerSet",
        "LeaderWorkerSet",
        "Deployment",
        "Service",
    ]


def test_a_misspelt_field_is_refused_by_the_schema(tmp_path: Path):
    (text,) = render(ASCEND_EXAMPLES[0], "k8s", tmp_path).values()
    document = next(yaml.safe_load_all(text))
    document["spec"]["leaderWorkerTemplate"]["sizes"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, MANIFEST)


@pytest.mark.parametrize("target", ["shell", "compose"])
@every_deployment
def test_every_machine_gets_its_own_file_and_the_router_knows_every_instance(
    deployment: Deployment, target: str, tmp_path: Path
):
    commands = command_lines(rendered(deployment, target, tmp_path))
    routers = [command for command in commands if command[2] == "sglang_router.launch_router"]
    servers = [command for command in commands if command[2] == "sglang.launch_server"]
    (router,) = routers
    for name, role in deployment.roles.items():
        machines = getattr(deployment.ascend, f"{name}_addresses")
        leaders = machines[:: role.nodes]
        assert [word for flag, word in itertools.pairwise(router) if flag == f"--{name}"] == [
            f"http://{leader}:{deployment.ascend.port}" for leader in leaders
        ]
        own = [command for command in servers if value(command, "--disaggregation-mode") == name]
        assert len(own) == len(machines)
        if role.nodes > 1:
            assert {value(command, "--nnodes") for command in own} == {str(role.nodes)}
            places = {(value(command, "--dist-init-addr"), value(command, "--node-rank")) for command in own}
            assert places == {
                (f"{leader}:{deployment.ascend.dist_port}", str(rank))
                for leader in leaders
                for rank in range(role.nodes)
            }


@every_deployment
def test_a_group_of_pods_is_an_instance(deployment: Deployment, tmp_path: Path):
    (text,) = rendered(deployment, "k8s", tmp_path).values()
    groups = [document for document in yaml.safe_load_all(text) if document["kind"] == "LeaderWorkerSet"]
    for (name, role), group in zip(deployment.roles.items(), groups, strict=True):
        template = group["spec"]["leaderWorkerTemplate"]
        assert (group["spec"]["replicas"], template["size"]) == (role.instances, role.nodes)
        assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
        for pod in (template["leaderTemplate"], template["workerTemplate"]):
            (container,) = pod["spec"]["containers"]
            assert value(container["command"], "--disaggregation-mode") == name
            if role.nodes > 1:
                assert value(container["command"], "--nnodes") == str(role.nodes)
                assert value(container["command"], "--node-rank") == "$(LWS_WORKER_INDEX)"
                assert value(container["command"], "--dist-init-addr").startswith("$(LWS_LEADER_ADDRESS):")
            assert container["resources"]["limits"] == {"huawei.com/Ascend910": str(role.tp_size // role.nodes)}


@every_deployment
def test_every_container_of_a_server_has_the_secret_where_its_flag_says(deployment: Deployment, tmp_path: Path):
    secret = deployment.secret_file
    commands = command_lines(rendered(deployment, "shell", tmp_path))
    servers = [command for command in commands if command[2] == "sglang.launch_server"]
    flag = FLAGS["secret_file"].flag
    assert {value(command, flag) if flag in command else None for command in servers} == {secret}
    (tmp_path / "compose").mkdir()
    for name, text in rendered(deployment, "compose", tmp_path / "compose").items():
        for service in yaml.safe_load(text)["services"].values():
            mounted = f"{secret}:{secret}:ro" in service.get("volumes", [])
            assert mounted == (secret is not None and name != "router.compose.yaml")
    (tmp_path / "k8s").mkdir()
    for pod in pods(rendered(deployment, "k8s", tmp_path / "k8s")[f"{deployment.name}.k8s.yaml"]):
        (container,) = pod["containers"]
        mounts = [mount for mount in container.get("volumeMounts", []) if mount["name"] == "secret"]
        volumes = [volume["secret"] for volume in pod.get("volumes", []) if volume["name"] == "secret"]
        if secret is None or container["name"] == "router":
            assert (mounts, volumes) == ([], [])
        else:
            [mount] = mounts
            assert (mount["mountPath"], mount["subPath"]) == (secret, Path(secret).name)
            assert volumes == [{"secretName": deployment.ascend.secret_name, "defaultMode": 0o400}]


@every_deployment
def test_windows_are_those_that_the_exchange_would_map(deployment: Deployment, tmp_path: Path):
    config = CONFIGS[deployment.name]
    for command in command_lines(rendered(deployment, "shell", tmp_path)):
        if command[2] != "sglang.launch_server":
            continue
        name = value(command, "--disaggregation-mode")
        role = deployment.roles[name]
        batch = role.chunked_prefill_size if name == "prefill" else role.max_running_requests
        tokens = int(value(command, "--ascend-moe-max-tokens"))
        assert tokens * role.tp_size >= batch > (tokens - 1) * role.tp_size
        parameters = ExchangeParameters(
            ranks=role.tp_size,
            num_experts=config.get("num_experts") or config["n_routed_experts"],
            hidden=config["hidden_size"],
            max_tokens=tokens,
            topk=config["num_experts_per_tok"],
            distinct_topk=True,
        )
        limits = SchedulerLimits(batch, batch, "--chunked-prefill-size", role.tp_size, name)
        planned = plan_window(sized(parameters, Options(), limits))
        assert int(value(command, "--ascend-moe-window-bytes")) == planned.total_bytes


def environments(files: dict[str, str]) -> list[dict[str, str]]:
    """The environment of every server in rendered files of any kind."""
    found = []
    for name, text in files.items():
        if name.endswith(".sh"):
            lines = [line.removeprefix("export ") for line in text.splitlines() if line.startswith("export ")]
            found.append(dict(shlex.split(line)[0].split("=", 1) for line in lines))
        elif name.endswith(".compose.yaml"):
            found += [service.get("environment", {}) for service in yaml.safe_load(text)["services"].values()]
        else:
            containers = [container for pod in pods(text) for container in pod["containers"]]
            found += [
                {item["name"]: item.get("value", "of the pod") for item in container.get("env", [])}
                for container in containers
            ]
    return [environment for environment in found if environment]


@every_target
@every_deployment
def test_every_server_is_told_of_hccl_and_of_the_store_of_memfabric(
    deployment: Deployment, target: str, tmp_path: Path
):
    ascend = deployment.ascend
    first = f"{deployment.name}-prefill-0.{deployment.name}-prefill" if target == "k8s" else ascend.prefill_addresses[0]
    told = environments(rendered(deployment, target, tmp_path))
    # On Kubernetes there are two kinds of pods for each role; else there is a file for each machine.
    machines = ascend.prefill_addresses + ascend.decode_addresses
    assert len(told) == (4 if target == "k8s" else len(machines))
    variables = {conflict.flag for conflict in CONFLICTS}
    for environment in told:
        assert variables.isdisjoint(environment)
        assert environment["ASCEND_MF_STORE_URL"] == f"tcp://{first}:{ascend.kv_store_port}"
        assert environment["ASCEND_MF_TRANSFER_PROTOCOL"] == "sdma"
        assert {environment["HCCL_SOCKET_IFNAME"], environment["GLOO_SOCKET_IFNAME"]} == {ascend.interface}
    hidden = CONFIGS[deployment.name]["hidden_size"]
    batches = [
        -(-(role.chunked_prefill_size if name == "prefill" else role.max_running_requests) // role.tp_size)
        * (role.tp_size // role.dp_size)
        for name, role in deployment.roles.items()
    ]
    assert {int(environment["HCCL_BUFFSIZE"]) for environment in told} == {
        max(200, -(-batch * hidden * 2 // 10**6)) for batch in batches
    }
    if target != "k8s":
        assert [environment["SGLANG_HOST_IP"] for environment in told] == [
            *ascend.decode_addresses,
            *ascend.prefill_addresses,
        ]


@every_target
def test_every_file_and_the_output_say_that_no_npu_has_run_it(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = render(ASCEND_EXAMPLES[0], target, tmp_path)
    assert NOT_RUN in capsys.readouterr().out
    assert [name for name, text in files.items() if NOT_RUN not in text] == []


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ('prefill_addresses = ["10.0.0.1"]', "ascend.prefill_addresses: 0 addresses for 1 instances"),
        ('interface = "enp194s0f0"', "needs more"),
    ],
    ids=["an address is missing", "more ranks than NPUs"],
)
def test_what_does_not_fit_the_machines_is_refused(
    changed: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    replacement = "npus_per_node = 8" if message == "needs more" else ""
    file = tmp_path / "deployment.toml"
    file.write_text((ROOT / "launch" / "examples" / "a3_1p1d.toml").read_text().replace(changed, replacement))
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS["qwen3-moe"]))
    command = ["render", "--target", "shell", "--file", str(file), "--model-config", str(tmp_path)]
    assert disagg_command.main(command) == WRONG_USAGE
    told = capsys.readouterr().err
    assert ("16 ranks need 16 NPUs" if message == "needs more" else message) in told


def test_the_example_of_one_host_is_what_up_can_start(parsers, tmp_path: Path):
    """The commands of its servers and of both routers, all flags of which the installed SGLang knows."""
    deployment = read_deployment(ROOT / "launch" / "examples" / "one_host.toml")
    assert [role.nodes for role in deployment.roles.values()] == [1, 1]
    assert not deployment.mixed_sizes
    members = []
    for name in deployment.roles:
        process = ServerProcess(server_flags(deployment, name, "host", NodePlace(8998)), tmp_path / name)
        members.append(Member(f"{name}-0", name, process, 8998))
        assert parsers["sglang.launch_server"].parse_known_args(process._arguments)[1] == []
    for kind in ("rust", "mini-lb"):
        routed = msgspec.structs.replace(deployment, router=Router(kind=kind))
        started = RunningDeployment(routed, tmp_path, Teller(as_json=True))
        started._members += members
        _, unknown = parsers["sglang_router.launch_router"].parse_known_args(started.router_arguments())
        assert unknown == []
