"""`ascend-moe plan schedule`: what it enumerates, finds feasible, and writes for others to read."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.launch import main as command
from sglang_ascend_moe.launch.disagg.deployment import read_deployment
from sglang_ascend_moe.launch.disagg.render import TARGETS
from sglang_ascend_moe.launch.plan.a3_constants import a3_machine
from sglang_ascend_moe.launch.plan.feasible_rates import Choice, best_rate, choices
from sglang_ascend_moe.launch.plan.model_work import model_work
from sglang_ascend_moe.launch.plan.moe_config import MoeShape, config_values, read_moe_shape
from sglang_ascend_moe.launch.plan.schedule_plot import draw_schedules
from sglang_ascend_moe.launch.plan.server_window import plan_server_window
from sglang_ascend_moe.launch.plan.topologies import Question, divisions, topologies
from sglang_ascend_moe.launch.servers.preflight import check_flags
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK, WRONG_USAGE
from sglang_ascend_moe.serving.worker.sizing import SchedulerLimits
from tests.launch.plan.model_configs import DEEPSEEK_V3, QWEN3_235B

NOWHERE = Path("/nowhere")
FAST = ["--input", "512", "--output", "32", "--candidates", "1", "--ttft", "1000"]


def question(config: dict = QWEN3_235B, **changed) -> Question:
    work = model_work("model", NOWHERE, config.get, "--model")
    asked = Question(work, a3_machine(), 32, 64 * 10**9, 512, 32, 1.0, 0.05, weights="w8a8")
    return asked._replace(**changed)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN3_235B))
    return path


def plan(model: Path, *arguments: str) -> int:
    return command.main(["plan", "schedule", "--model", str(model), *arguments])


def test_ranks_divide_experts_and_groups_divide_ranks_and_heads():
    found = list(divisions(question(DEEPSEEK_V3).work, 48))
    assert {tp for tp, _ in found} == {1, 2, 4, 8, 16, 32}
    assert [dp for tp, dp in found if tp == 8] == [1, 2, 4, 8]


def test_every_topology_takes_all_npus_and_fits_into_memory():
    asked = question()
    found = topologies(asked, "relay-free")
    assert found
    for one in found:
        assert one.first.ranks + (one.second.ranks if one.second else 0) == asked.npus
        for part in one.bytes:
            assert part.weights + part.windows + part.other + part.left == asked.memory
            assert part.left > 0
    assert {one.second is None for one in found} == {True, False}


def test_windows_have_the_bytes_of_a_server():
    """One account: what `disagg render` tells a server."""
    one = next(one for one in topologies(question(), "relay-free") if one.second is not None and one.second.tp == 16)
    settings = type("Settings", (), {"tp_size": 16, "ep_num_redundant_experts": 0})
    share = one.second.tp // one.second.dp
    limits = SchedulerLimits(one.second.running // one.second.dp, 1, "", share, "decode")
    from sglang_ascend_moe.serving.options import Options

    shape = MoeShape("", 4096, 128, 8, "bfloat16")
    assert one.bytes[1].windows == plan_server_window(shape, settings, Options(quant="int8"), limits).memory.total


def test_too_little_memory_leaves_no_topology():
    assert topologies(question(memory=10 * 10**9), "relay-free") == []


def test_less_exchange_is_feasible_at_a_higher_rate():
    best = {schedule: choices(question(), schedule, 1)[0] for schedule in ("relay-free", "buffer-centric")}
    assert best["relay-free"].feasible
    assert best["buffer-centric"].feasible
    assert best["relay-free"].best.rate > best["buffer-centric"].best.rate


@pytest.mark.parametrize(
    ("changed", "binds"),
    [({"ttft": 0.4}, "TTFT"), ({"ttft": 5.0, "tpot": 0.04, "input_tokens": 2048, "output_tokens": 256}, "TPOT")],
)
def test_the_limit_that_binds_is_named(changed: dict[str, float], binds: str):
    asked = question(**changed)
    one = next(one for one in topologies(asked, "relay-free") if one.second is None)
    found = best_rate(asked, one)
    assert found.feasible
    assert found.binds == binds


def test_memory_binds_where_requests_wait_for_it():
    """25 GB hold the weights of 16 dies and little else."""
    asked = question(npus=16, memory=25 * 10**9, output_tokens=256, tpot=0.2)
    (one,) = [one for one in topologies(asked, "relay-free") if one.second is None and one.first.dp == 1]
    assert one.bytes[0].tokens < one.first.running * 768
    assert best_rate(asked, one).binds == "memory"


def test_a_rate_that_is_asked_for_is_judged_as_it_is():
    one = topologies(question(), "relay-free")[0]
    best = best_rate(question(), one)
    for rate, feasible in ((best.best.rate, True), (best.best.rate * 2, False)):
        found = best_rate(question(rate=rate), one)
        assert (found.best.rate, found.feasible, len(found.points)) == (rate, feasible, 1)


def test_the_winner_is_written_as_flags_that_a_server_takes_and_a_file_that_disagg_takes(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    written, file = tmp_path / "found.json", tmp_path / "best.toml"
    drafts = ["--accept-length", "1.8", "--weights", "w8a8"]
    assert plan(config, "--npus", "32", *FAST, *drafts, "--json", str(written), "--deployment", str(file)) == OK
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if line.startswith("ascend-moe serve")]
    assert lines
    for line in lines:
        _, _, model, *flags = shlex.split(line)
        check_flags(["--model-path", model, "--ascend-moe", *flags])
    found = msgspec.json.decode(written.read_bytes(), type=dict[str, list[Choice]])
    assert set(found) == {"relay-free", "buffer-centric"}
    best = next(choice for choice in found["relay-free"] if choice.second is not None)
    deployment = read_deployment(file)
    assert deployment.prefill.tp_size == best.first.tp
    assert (deployment.decode.instances, deployment.decode.dp_size) == (best.second.instances, best.second.dp)
    machines = {
        f"{name}_addresses": [f"10.0.{number}.{node}" for node in range(role.instances * role.nodes)]
        for number, (name, role) in enumerate(deployment.roles.items())
    }
    complete = msgspec.structs.replace(deployment, ascend=msgspec.structs.replace(deployment.ascend, **machines))
    assert TARGETS["shell"](complete, read_moe_shape(config))


def test_a_checkpoint_counts_as_start_up_counts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = write_checkpoint(tmp_path / "model")
    assert plan(folder, "--npus", "4", *FAST) == OK
    assert "Qwen3MoeForCausalLM in bf16 on 4 NPUs" in capsys.readouterr().out


def test_a_limit_that_nothing_keeps_is_a_failed_check_that_names_it(config: Path, capsys: pytest.CaptureFixture[str]):
    assert plan(config, "--npus", "16", *FAST, "--weights", "w8a8", "--ttft", "60") == CHECK_FAILED
    said = capsys.readouterr().err
    assert "--npus 16" in said
    assert "--ttft 60" in said


MISTAKES = {
    "a model that is not there": (["--npus", "8"], "no/such", "--model no/such: No such file"),
    "a constant": (["--npus", "8", "--constant", "layer_us"], None, "--constant layer_us: must be a name and a number"),
    "short drafts": (["--npus", "8", "--accept-length", "3", "--drafts", "1"], None, "--drafts of at least 2"),
    "less than a token a step": (["--npus", "8", "--accept-length", "0.5"], None, "must be at least 1"),
    "a machine": (["--npus", "8", "--machine", "no/such.json"], None, "`ascend-moe plan calibrate` writes one"),
    "a file": (["--npus", "8", "--json", "no/such/x.json"], None, "--json no/such/x.json: there is no folder"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(config: Path, capsys: pytest.CaptureFixture[str], mistake: str):
    flags, model, said = MISTAKES[mistake]
    assert plan(Path(model) if model else config, *flags) == WRONG_USAGE
    assert said in capsys.readouterr().err


def test_a_value_of_a_text_model_is_found_inside(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"vocab_size": 5, "text_config": {"num_experts": 8, "hidden_size": 64}}))
    value_of = config_values(path)
    assert (value_of("hidden_size"), value_of("vocab_size"), value_of("nothing")) == (64, 5, None)


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_picture_is_drawn_and_the_same_each_time(tmp_path: Path, suffix: str):
    asked = question(rate=10.0)
    found = {schedule: choices(asked, schedule, 1) for schedule in ("relay-free", "buffer-centric")}
    paths = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for path in paths:
        draw_schedules(asked, found, path)
    assert paths[0].stat().st_size > 5_000
    assert paths[0].read_bytes() == paths[1].read_bytes()
