"""`ascend-moe adopt`: what it prints of a command line or script, its exit codes, and how it names what is wrong."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from sglang_ascend_moe.launch.adopt.adopt_command import main
from sglang_ascend_moe.launch.adopt.shell_script import read_script
from sglang_ascend_moe.launch.plan.memory_plan import Request, plan_memory
from sglang_ascend_moe.serving.launcher.conflicts import CONFLICTS
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK, WRONG_USAGE
from sglang_ascend_moe.serving.launcher.modelslim import MODELSLIM_FILE
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.sizing import SchedulerLimits, sized
from sglang_ascend_moe.windows.layout import ExchangeParameters
from tests.serving.launcher.test_conflicts import SETTINGS

SERVER = "python -m sglang.launch_server --model-path m --max-running-requests 64 --chunked-prefill-size 2048 --tp 4"
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 2048, "num_experts": 128, "num_experts_per_tok": 8,
    "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


@pytest.fixture
def adopted(capsys: pytest.CaptureFixture[str]):
    """The servers in the JSON that the command prints."""

    def run(command: str, *flags: str) -> list[dict[str, Any]]:
        code = main([*flags, "--json", *(["--", *shlex.split(command)] if command else [])])
        captured = capsys.readouterr()
        assert captured.err == ""
        servers: list[dict[str, Any]] = json.loads(captured.out)["servers"]
        assert code == (CHECK_FAILED if any(server["refusals"] for server in servers) else OK)
        return servers

    return run


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("python3.11 -u -m sglang.launch_server --model m", ["python3.11", "-u", "-m", "sglang.launch_server"]),
        ("numactl -C 0-7 sglang serve --model m", ["numactl", "-C", "0-7", "sglang", "serve"]),
        ("python /opt/sglang/launch_server.py --model m", ["python", "/opt/sglang/launch_server.py"]),
        ("env A=1 nohup /venv/bin/sglang serve --model m", ["nohup", "/venv/bin/sglang", "serve"]),
        ("ascend-moe serve m", ["ascend-moe", "serve"]),
    ],
    ids=["module", "command", "file", "wrapped", "our own"],
)
def test_every_way_to_start_a_server_is_known(adopted, command: str, program: list[str]):
    (server,) = adopted(command)
    assert server["command"][: len(program)] == program
    assert server["command"][-2:] == ["m", "--ascend-moe"]
    assert server["environment"] == ({"A": "1"} if "A=1" in command else {})


def test_what_is_printed_can_be_typed_and_is_the_command(capsys: pytest.CaptureFixture[str], config: Path, adopted):
    command = (
        f"""HCCL_BUFFSIZE=1600 A='b c' {SERVER} --moe-a2a-backend deepep --json-model-override-args '{{"a": 1}}'"""
    )
    (server,) = adopted(command, "--model-config", str(config))
    assert main(["--model-config", str(config), "--", *shlex.split(command)]) == OK
    printed = capsys.readouterr().out
    (typed,) = read_script(printed.split("\n\n")[0])
    assert (typed.words, typed.environment) == (server["command"], server["environment"])
    assert typed.environment == {"HCCL_BUFFSIZE": "200", "A": "b c"}
    assert "dropped: --moe-a2a-backend deepep: the exchange takes its place" in printed
    assert "translated: HCCL_BUFFSIZE=1600 -> HCCL_BUFFSIZE=200: " in printed
    assert printed.splitlines()[-1] == "No flag would be refused."


def test_every_server_of_a_script_is_read(adopted, tmp_path: Path):
    script = tmp_path / "serve.sh"
    script.write_text(
        "export HCCL_BUFFSIZE=100  # MB\n"
        "MODEL=/models/moe\n"
        "if true; then\n"
        f"  {SERVER} --model-path $MODEL --disaggregation-mode prefill --host $HOST_IP --deepep-mode normal &\n"
        "else\n"
        f"  A=1 {SERVER} --disaggregation-mode decode \\\n     --dcp-size 2 > log 2>&1\n"
        "fi\n"
    )
    prefill, decode = adopted("", "--file", str(script))
    assert prefill["command"][-5:] == ["--host", "$HOST_IP", "--ascend-moe-schedule", "prefill", "--ascend-moe"]
    assert "/models/moe" in prefill["command"]
    assert [refusal["about"] for refusal in decode["refusals"]] == ["--dcp-size"]
    assert (prefill["environment"], decode["environment"]) == (
        {"HCCL_BUFFSIZE": "100"},
        {"HCCL_BUFFSIZE": "100", "A": "1"},
    )


def test_what_the_shell_knows_is_left_to_it(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    script = tmp_path / "serve.sh"
    script.write_text(f'{SERVER} --host "$HOST_IP" --port 8000\n')
    assert main(["--file", str(script)]) == OK
    assert '--host "$HOST_IP"' in capsys.readouterr().out
    script.write_text(f"{SERVER} --port $PORT\n")
    assert main(["--file", str(script)]) == WRONG_USAGE
    assert "--port: invalid int value: '$PORT'" in (said := capsys.readouterr().err)
    assert "Only the shell knows what $PORT is; write it out" in said


def test_the_window_is_that_of_the_flags_beside_what_it_replaces(adopted, config: Path):
    variables = "HCCL_BUFFSIZE=1600 SGLANG_ZBAL_LOCAL_MEM_SIZE=4 SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=2"
    command = f"{variables} {SERVER} --dp-size 2 --enable-dp-attention --ep-num-redundant-experts 4"
    (server,) = adopted(command, "--model-config", str(config))
    # Two groups of two ranks: half of the chunk and of the requests each, shared by the two.
    parameters = ExchangeParameters(
        ranks=4, num_experts=132, hidden=2048, max_tokens=512, topk=8, dtype="bfloat16", distinct_topk=True
    )
    limits = SchedulerLimits(32, 1024, "--chunked-prefill-size", 2, "null")
    plan = plan_memory(Request("", "both", sized(parameters, Options(), limits), 16))
    assert server["window"] == {
        "tokens_per_rank": 512,
        "bytes": plan.memory.total,
        "rounds_even": 1,
        "rounds_worst": 2,
        "in_place_of": {
            "HCCL_BUFFSIZE=1600": 1600 * 2**20,
            "SGLANG_ZBAL_LOCAL_MEM_SIZE=4": 4 * 2**20,
            # Rows of 2048 elements and what goes with them, for 33 experts of 4 ranks; results of 8 experts.
            "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK=2": 2 * (2 * 4608 * 132 + 2 * 4096 * 8),
        },
    }
    assert server["notes"] == []


@pytest.mark.parametrize(
    ("command", "note"),
    [
        ("sglang serve --model m", "SGLang chooses --max-running-requests"),
        (f"{SERVER} --chunked-prefill-size -1", "give --context-length"),
        (SERVER, "the model was not looked at"),
    ],
    ids=["requests", "context", "model"],
)
def test_what_is_not_known_is_a_note(adopted, command: str, note: str):
    (server,) = adopted(command)
    assert server["window"] is None
    assert any(note in said for said in server["notes"])


def test_a_window_that_no_die_can_hold_is_a_note(adopted, config: Path):
    flags = "--model-config", str(config)
    large = SERVER.replace("--chunked-prefill-size 2048", "--chunked-prefill-size 4000000")
    (server,) = adopted(large, *flags)
    assert server["notes"] == []
    assert server["window"]["bytes"] <= 8 * 2**30
    assert server["window"]["rounds_worst"] > 1
    (server,) = adopted(f"{large} --ascend-moe-window-bytes 80GiB --ascend-moe", *flags)
    assert any("give a smaller --ascend-moe-window-bytes" in note for note in server["notes"])


def words_of(flag: str) -> str:
    """What has to be refused, as it is typed."""
    if not flag.startswith("--"):
        return f"{flag}=1 {SERVER}"
    given = []
    for name, value in SETTINGS[flag].items():
        values = [] if value is True else value if isinstance(value, list) else [str(value)]
        given += [f"--{name.replace('_', '-')}", *values]
    return f"{SERVER} {shlex.join(given)}"


# What adopt drops or translates, so that a server need not refuse it; and what is refused on a host only.
CHANGED = {"--deepep-config", "--deepep-dispatcher-output-dtype", "--fuseep-mode"}


@pytest.mark.parametrize("conflict", CONFLICTS, ids=lambda conflict: conflict.flag)
def test_what_a_server_refuses_is_refused_in_its_words(adopted, conflict):
    (server,) = adopted(words_of(conflict.flag), "--device", "cpu")
    said = [refusal["message"] for refusal in server["refusals"] if refusal["about"] == conflict.flag]
    if conflict.flag in CHANGED:
        assert (said, len(server["changes"])) == ([], 1)
    else:
        assert len(said) == 1
        assert conflict.cause in said[0]
        assert conflict.instead in said[0]


def test_all_reasons_are_given_at_once(adopted, config: Path):
    (config / MODELSLIM_FILE).write_text(json.dumps({"model.layers.0.mlp.experts.0.w1.weight": "W4A4_DYNAMIC"}))
    command = f"{SERVER} --dcp-size 2 --nnodes 2 --ep-size 2 --ascend-moe-verify --moe-a2a-backend mori"
    (server,) = adopted(command, "--model-config", str(config))
    about = ["--dcp-size", "--ascend-moe-verify", "--nnodes", "--moe-a2a-backend", "model"]
    assert [refusal["about"] for refusal in server["refusals"]] == about


def test_a_window_that_is_too_small_is_a_refusal(adopted, config: Path):
    (server,) = adopted(f"{SERVER} --ascend-moe-window-bytes 1MiB --ascend-moe", "--model-config", str(config))
    assert [refusal["about"] for refusal in server["refusals"]] == ["--ascend-moe-window-bytes"]


def test_the_config_is_taken_from_the_model_if_it_is_here(adopted, config: Path):
    (server,) = adopted(SERVER.replace("--model-path m", f"--model-path {config}"))
    assert server["window"]["tokens_per_rank"] == 512


WRONG = {
    "nothing": ([], "give either -- COMMAND ..., or --file"),
    "both": (["--file", "x.sh", "--", "sglang", "serve"], "give either -- COMMAND ..., or --file"),
    "no such file": (["--file", "no/such.sh"], "--file no/such.sh: No such file or directory"),
    "a folder": (["--file", "."], "--file .: Is a directory"),
    "no server": (["--", "ls", "-l"], "COMMAND: it starts no server of SGLang"),
    "an empty command": (["--"], "COMMAND: it starts no server of SGLang"),
    "a flag that is none": (
        ["--", *SERVER.split(), "--pp-sizee", "1"],
        "unrecognized arguments: --pp-sizee 1; did you",
    ),
    "a value": (["--", *SERVER.split(), "--tp-size", "many"], "--tp-size: invalid int value: 'many'"),
    "no ranks": (["--", *SERVER.split(), "--tp-size", "0"], "--tp-size 0: must be at least 1"),
    "an address that only the shell knows": (
        ["--", f"{SERVER} --nnodes 2 --dist-init-addr $ADDRESS"],
        "--dist-init-addr '$ADDRESS': write HOST:PORT, an address of node 0, such as 10.0.0.1:5000. Only the shell"
        " knows what $ADDRESS is; write it out",
    ),
    "no model": (["--", "sglang", "serve", "--tp-size", "2"], "--model-path is missing"),
    "a value of ours": (["--", *SERVER.split(), "--ascend-moe-quant", "int4"], "--ascend-moe-quant 'int4': choose one"),
    "a config": (["--model-config", "no/such", "--", *SERVER.split()], "--model-config no/such: "),
    "a quote": (["--", "sglang serve --model 'm"], "line 1: ' is never closed"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_understood_is_one_line(name: str, capsys: pytest.CaptureFixture[str]):
    arguments, said = WRONG[name]
    assert main(arguments) == WRONG_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"ascend-moe adopt: {said}"), captured.err
    assert len(captured.err.splitlines()) == 1
