"""What is fitted to measurements gives them back, and predictions are judged as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch import main as command
from sglang_ascend_moe.launch.bench.records import Record
from sglang_ascend_moe.launch.bench.serving_client import Load
from sglang_ascend_moe.launch.bench.serving_command import PRESET
from sglang_ascend_moe.launch.bench.serving_records import ServingRecord
from sglang_ascend_moe.launch.plan.a3_constants import a3_machine
from sglang_ascend_moe.launch.plan.calibration import (
    ALONE,
    CHECKED,
    FULL,
    SHORT,
    Asked,
    Calibration,
    _line,
    fitted,
    handing_over,
    line_of,
    predicted,
    span_of,
)
from sglang_ascend_moe.launch.plan.machine_times import Machine, read_machine
from sglang_ascend_moe.launch.plan.measured_servers import Deployed, deployments
from sglang_ascend_moe.launch.plan.model_work import ModelWork, model_work
from sglang_ascend_moe.launch.plan.prediction_check import (
    GREATEST_ERROR,
    MEASURES,
    Compared,
    comparison_table,
    kendall_tau,
    verdict,
)
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE

NOWHERE = Path("/nowhere")


def work() -> ModelWork:
    config = {
        "num_hidden_layers": PRESET.layers, "num_attention_heads": PRESET.heads, "hidden_size": PRESET.hidden,
        "vocab_size": PRESET.vocab, "max_position_embeddings": 2048, "num_key_value_heads": PRESET.kv_heads,
        "head_dim": PRESET.head_dim, "num_experts": PRESET.experts, "num_experts_per_tok": PRESET.topk,
        "moe_intermediate_size": PRESET.expert_hidden,
    }  # fmt: skip
    return model_work("", NOWHERE, config.get, "")


def host() -> Machine:
    return msgspec.structs.replace(
        a3_machine(), shared=True, step_us={}, layer_us={"any": 0.0}, token_us={}, products={"bf16": 1e11},
        memory_rate=1e10, request_us=0.0, transfer_us=0.0,
    )  # fmt: skip


def measured(ttft_ms: float, tpot_ms: float, load: Load = ALONE) -> ServingRecord:
    return ServingRecord(
        variant="", round=1, requests=load.requests, completed=load.requests, concurrency=load.concurrency,
        input_tokens=load.input_tokens, output_tokens=load.output_tokens, median_ttft_ms=ttft_ms, p99_ttft_ms=ttft_ms,
        median_tpot_ms=tpot_ms, p99_tpot_ms=tpot_ms, output_tokens_per_s=4.0,
    )  # fmt: skip


MEASURED = Calibration(measured(350.0, 40.0), measured(200.0, 40.0, SHORT), measured(900.0, 60.0, FULL))


TOGETHER = [deployed for deployed in deployments([1, 2, 4]) if not deployed.apart]
APART = Deployed("relay-free", 1, apart=True)


@pytest.mark.parametrize("deployed", TOGETHER, ids=lambda deployed: deployed.name)
def test_what_was_measured_for_calibration_is_predicted(deployed: Deployed):
    machine = fitted(host(), work(), deployed, MEASURED)
    ttft, tpot = predicted(machine, work(), Asked(deployed, ALONE)).median
    assert (ttft * 1e3, tpot * 1e3) == (pytest.approx(350.0), pytest.approx(40.0, rel=1e-3))
    assert predicted(machine, work(), Asked(deployed, SHORT)).median[0] * 1e3 == pytest.approx(200.0)
    assert predicted(machine, work(), Asked(deployed, FULL)).median[1] * 1e3 == pytest.approx(60.0, rel=0.005)
    for load in CHECKED:
        assert predicted(machine, work(), Asked(deployed, load)).median[0] >= ttft / 2


def test_servers_apart_hand_over_in_what_their_first_token_takes_longer():
    together = fitted(host(), work(), Deployed("relay-free", 1), MEASURED)
    machine = handing_over(together, work(), APART, measured(420.0, 41.0))
    assert machine.step_us == together.step_us
    ttft, tpot = predicted(machine, work(), Asked(APART, ALONE)).median
    assert (ttft * 1e3, tpot * 1e3) == (pytest.approx(420.0), pytest.approx(40.0, rel=1e-3))


def test_servers_apart_read_in_one_step_what_comes_at_once():
    """Seen in measured first tokens: the servers agree on all of them while none is read yet."""
    together = fitted(host(), work(), Deployed("relay-free", 1), MEASURED)
    machine = handing_over(together, work(), APART, measured(420.0, 41.0))
    at_once = Load(requests=8, concurrency=8, input_tokens=128, output_tokens=32)
    assert len(set(predicted(machine, work(), Asked(APART, at_once)).ttft)) == 1
    assert len(set(predicted(machine, work(), Asked(Deployed("relay-free", 1), at_once)).ttft)) > 1


def test_the_time_in_which_requests_came_ends_before_the_last_answer():
    found = measured(1000.0, 100.0, CHECKED[2])
    assert span_of(found) == pytest.approx(16 * 32 / 4.0 - 1.0 - 3.1)


def test_a_server_that_was_not_measured_is_named():
    machine = fitted(host(), work(), Deployed("relay-free", 2), MEASURED)
    with pytest.raises(InvalidInput, match=r"relay-free on 4 ranks was not measured, only relay-free prefill 2, .*"):
        predicted(machine, work(), Asked(Deployed("relay-free", 4), ALONE))


def test_the_schedules_of_one_rank_are_one():
    assert deployments([1, 2]) == [
        ("relay-free", 1, False), ("relay-free", 2, False), ("buffer-centric", 2, False), ("relay-free", 1, True)
    ]  # fmt: skip


def test_a_line_goes_through_the_fewest_and_the_most_tokens():
    records = [
        Record(
            op=op, phase="decode", ranks=2, hidden=1024, tokens=tokens, topk=8, experts=64, dtype="bf16",
            routing="uniform", seed=1, variant=variant, median_us=median, p10_us=median, p90_us=median, iterations=9,
            checked=True,
        )
        for op, variant, tokens, median in (
            ("dispatch", "relay-free", 8, 100.0), ("dispatch", "relay-free", 1, 30.0),
            ("dispatch", "collective", 1, 900.0), ("combine", "relay-free", 1, 700.0),
        )
    ]  # fmt: skip
    line = line_of(records, "relay-free", "dispatch")
    assert [line.seconds(tokens * 8 * 1024 * 2) * 1e6 for tokens in (1, 8)] == pytest.approx([30.0, 100.0])


@pytest.mark.parametrize(
    ("pairs", "tau"),
    [
        ([(1, 10), (2, 20), (3, 30)], 1.0),
        ([(3, 10), (2, 20), (1, 30)], -1.0),
        ([(1, 10), (3, 20), (2, 30)], 1 / 3),
        ([(1, 10), (1, 20), (2, 30)], 2 / 3),
    ],
)
def test_kendalls_tau(pairs: list, tau: float):
    assert kendall_tau(pairs) == pytest.approx(tau)


@pytest.mark.parametrize(
    ("pairs", "good"),
    [
        ([(1.1, 1), (2.1, 2), (3.1, 3)], True),
        ([(1.2, 1), (2.4, 2), (3.6, 3)], False),
        ([(1, 1), (2, 2), (3 * (1 + GREATEST_ERROR) + 0.1, 3)], False),
        ([(1.02, 1), (1.01, 1.03), (1.0, 1.04)], False),
    ],
    ids=["good", "all a fifth off", "one far off", "in the wrong order"],
)
def test_predictions_are_judged_by_all_three_bounds(pairs: list, good: bool):
    assert verdict(pairs).is_good == good


@pytest.mark.parametrize(
    ("at_low", "at_high", "at_four"),
    [(10.0, 24.0, 16.0), (-2.0, 8.0, 4.0), (1.0, 80.0, 40.0), (24.0, 10.0, 10.0), (-4.0, -2.0, 0.0)],
    ids=["between", "nothing at the low end", "steeper than tokens", "falling", "nothing at all"],
)
def test_a_fitted_line_meets_the_high_end_and_is_nowhere_below_nothing(at_low: float, at_high: float, at_four: float):
    slope, beginning = _line(1, at_low, 8, at_high)
    assert slope >= 0
    assert beginning >= 0
    assert slope * 8 + beginning == pytest.approx(max(0.0, at_high))
    assert slope * 4 + beginning == pytest.approx(at_four)


def test_at_a_given_rate_nothing_is_predicted_of_tokens_per_second():
    rates = [(1.0, 2.0), None, (2.0, 2.0)]
    compared = [
        Compared(name="server", schedule="relay-free", ttft_ms=(1, 1), tpot_ms=(1, 1), output_tokens_per_s=rate)
        for rate in rates
    ]
    assert MEASURES[2].pairs(compared) == [(1.0, 2.0), (2.0, 2.0)]
    assert comparison_table(compared).splitlines()[2].endswith(" -")
    assert "median error 25%" in comparison_table(compared).splitlines()[-1]


def test_the_table_says_what_is_not_good_enough():
    compared = [
        Compared(name=f"server {number}", schedule="relay-free", ttft_ms=(number, number), tpot_ms=(2 * number, number),
                 output_tokens_per_s=(number, number))
        for number in (1, 2, 3)
    ]  # fmt: skip
    *_, ttft, tpot, rate = comparison_table(compared).splitlines()
    assert ttft == "TTFT, ms: median error 0%, greatest 0%, Kendall's tau 1.00: good"
    assert tpot == "TPOT, ms: median error 100%, greatest 100%, Kendall's tau 1.00: not good enough"
    assert rate.endswith("good")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["calibrate", "--json", "no/such/x.json"], "--json no/such/x.json: there is no folder"),
        (["calibrate", "--json", "x.json", "--ranks", "0"], "not a whole number"),
        (["check", "--machine", "no/such.json"], "`ascend-moe plan calibrate` writes one"),
        (["check", "--machine", "no/such.json", "--plot", "no/such/x.svg"], "--plot no/such/x.svg: there is no folder"),
    ],
)
def test_mistakes_are_named(capsys: pytest.CaptureFixture[str], words: list[str], said: str):
    try:
        code = command.main(["plan", *words])
    except SystemExit as ended:
        code = ended.code
    assert code == WRONG_USAGE
    assert said in capsys.readouterr().err


@pytest.mark.nightly
def test_this_host_is_calibrated_and_predictions_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Whether they are good is for an idle machine to say; that all is measured and compared, for any."""
    machine, compared = tmp_path / "machine.json", tmp_path / "compared.json"
    assert command.main(["plan", "calibrate", "--json", str(machine), "--ranks", "2"]) == OK
    assert set(read_machine(machine).step_us) == {
        f"{schedule} {phase} 2" for schedule in ("relay-free", "buffer-centric") for phase in ("decode", "prefill")
    }
    plot = tmp_path / "compared.svg"
    words = ["--machine", str(machine), "--ranks", "2", "--json", str(compared), "--plot", str(plot)]
    command.main(["plan", "check", *words])
    assert "<svg" in plot.read_text()
    assert len(json.loads(compared.read_bytes())) == 3 * len(CHECKED)
    assert "Kendall's tau" in capsys.readouterr().out
