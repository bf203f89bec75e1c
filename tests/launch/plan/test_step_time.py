"""Weights, bytes and times of a step, against what is published, and against checkpoints."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.plan.a3_constants import A3, MEAN_TOKENS, a3_machine
from sglang_ascend_moe.launch.plan.machine_times import SCHEDULES, read_machine
from sglang_ascend_moe.launch.plan.model_work import ModelWork, model_work, weights_of
from sglang_ascend_moe.launch.plan.step_time import Placement, StepTimes
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.host.checkpoint_bytes import weight_bytes
from tests.launch.plan.model_configs import DEEPSEEK_V3, QWEN3_235B

NOWHERE = Path("/nowhere")
PAPER = {
    ("relay-free", 4096, "bf16"): (73.81, 46.03), ("relay-free", 7168, "bf16"): (104.48, 70.23),
    ("relay-free", 4096, "int8"): (59.46, 46.02), ("relay-free", 7168, "int8"): (71.48, 69.80),
    ("buffer-centric", 4096, "bf16"): (94.95, 59.88), ("buffer-centric", 7168, "bf16"): (124.73, 89.76),
    ("buffer-centric", 4096, "int8"): (88.62, 61.88), ("buffer-centric", 7168, "int8"): (101.06, 91.41),
}  # fmt: skip


def deepseek() -> ModelWork:
    return model_work("DeepSeek-V3", NOWHERE, DEEPSEEK_V3.get, "--model")


@pytest.mark.parametrize(
    ("config", "billions"), [(DEEPSEEK_V3, 671), (QWEN3_235B, 235)], ids=["DeepSeek-V3", "Qwen3-235B"]
)
def test_a_published_model_has_the_published_number_of_weights(config: dict, billions: int):
    work = model_work("", NOWHERE, config.get, "--model")
    assert round(sum(work.numbers) / 1e9) == billions
    assert sum(work.weights("bf16")) == 2 * sum(work.numbers)


@pytest.mark.parametrize("family", ["qwen3_moe", "qwen2_moe", "glm4_moe", "deepseek_v2", "deepseek_v3", "minimax_m2"])
def test_arithmetic_finds_the_bytes_of_a_checkpoint_that_start_up_finds(tmp_path: Path, family: str):
    folder = write_checkpoint(tmp_path, family=family)
    config = msgspec.json.decode((folder / "config.json").read_bytes())
    found = weight_bytes(folder, 2)
    assert found is not None
    work = model_work(family, NOWHERE, config.get, "--model")
    # Norms and biases, of which a tiny model has relatively many.
    assert work.weights("bf16").experts == found.experts
    assert work.weights("bf16").shared_experts == pytest.approx(found.shared_experts, rel=0.01)
    assert work.weights("bf16").others == pytest.approx(found.others, rel=0.01)
    there = work._replace(sizes=work.sizes._replace(folder=folder))
    assert weights_of(there, "bf16", on_npu=True) == found


@pytest.mark.parametrize(("schedule", "hidden", "rows"), PAPER)
def test_the_papers_averages_are_given_back(schedule, hidden: int, rows: str):
    times = a3_machine().exchange[f"{schedule} decode {rows}"]
    brought = MEAN_TOKENS * 8 * hidden
    found = times.dispatch.seconds(brought * (1 if rows == "int8" else 2)), times.combine.seconds(brought * 2)
    assert [second * 1e6 for second in found] == pytest.approx(PAPER[schedule, hidden, rows])


@pytest.mark.parametrize(("schedule", "least", "most"), [("relay-free", 1.0, 6.8), ("buffer-centric", 1.1, 9.4)])
def test_the_papers_prefill_is_given_back(schedule, least: float, most: float):
    dispatch = a3_machine().exchange[f"{schedule} prefill bf16"].dispatch
    found = [dispatch.seconds(tokens * 7168 * 2 * 8) * 1e3 for tokens in (1024, 16384)]
    assert found == pytest.approx([least, most])


def test_a_layer_takes_about_what_cloudmatrix_says():
    """arXiv 2506.12708, section 5: 874 us without and 1,260 us with a draft, 48 requests a die that have 4,096 tokens
    each, on 320 dies (256 here: one expert on each). Nothing was fitted to it."""
    for drafts, published in ((0, 874), (1, 1260)):
        times = StepTimes(deepseek(), a3_machine(), Placement(256, 256, "w8a8", drafts), "relay-free")
        step = times.decode(256 * 48, 4096)
        layer = (step.total - A3["step_us"].value / 1e6) / (61 + drafts) * 1e6
        assert layer == pytest.approx(published, rel=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dp", [1, 4, 16])
def test_more_work_takes_more_time(schedule, dp: int):
    times = StepTimes(deepseek(), a3_machine(), Placement(16, dp, "w8a8"), schedule)
    requests = [times.decode(number, 4096).total for number in (16, 64, 256, 1024)]
    contexts = [times.decode(256, context).total for context in (512, 4096, 32768)]
    chunks = [times.prefill(tokens, 16).total for tokens in (2048, 8192, 32768)]
    for growing in (requests, contexts, chunks):
        assert growing == sorted(set(growing))


def test_one_prompt_is_read_by_one_attention_group():
    times = StepTimes(deepseek(), a3_machine(), Placement(16, 16, "w8a8"), "relay-free")
    one, two = times.prefill(8192, 1), times.prefill(8192, 2)
    assert one.exchange > two.exchange
    assert one.attention > two.attention


def test_relay_buffers_cost_their_part_of_the_exchange_and_nothing_else():
    with_relay, without = (
        StepTimes(deepseek(), a3_machine(), Placement(64, 64, "w8a8"), schedule).decode(2048, 4096)
        for schedule in ("buffer-centric", "relay-free")
    )
    assert with_relay.exchange > without.exchange
    assert with_relay._replace(exchange=0) == without._replace(exchange=0)


def test_one_rank_exchanges_nothing():
    step = StepTimes(deepseek(), a3_machine(), Placement(1), "relay-free").decode(1, 100)
    assert (step.exchange, step.collectives) == (0, 0)


def test_a_constant_may_have_another_value_and_none_that_is_not_there():
    assert a3_machine(layer_us=50.0).layer_us == {"any": 50.0}
    with pytest.raises(InvalidInput, match=r"--constant layers_us: must be of .*layer_us"):
        a3_machine(layers_us=50.0)


def test_every_constant_lies_within_what_it_may_be():
    assert [name for name, one in A3.items() if not one.least <= one.value <= one.most or not one.source] == []


def test_a_machine_is_read_as_it_was_written(tmp_path: Path):
    path = tmp_path / "machine.json"
    path.write_bytes(msgspec.json.encode(a3_machine()))
    assert read_machine(path) == a3_machine()


@pytest.mark.parametrize(("text", "said"), [(None, "No such file"), ("{}", "missing required field"), ("x", "JSON")])
def test_a_file_that_is_no_machine_is_named_with_what_writes_one(tmp_path: Path, text: str | None, said: str):
    path = tmp_path / "machine.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidInput, match=rf"--machine .*machine.json: .*{said}.*plan calibrate"):
        read_machine(path)


def test_a_config_without_experts_is_refused_with_what_was_asked():
    with pytest.raises(InvalidInput, match=r"^--model x: it does not say the layers"):
        model_work("", NOWHERE, {"hidden_size": 64}.get, "--model x")
