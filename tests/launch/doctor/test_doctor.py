"""`ascend-moe doctor` finds what is wrong, says what to do about it, and has the exit code of the worst of it."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.exchange.exchange import Exchange
from sglang_ascend_moe.exchange.observation import GraphCounts
from sglang_ascend_moe.launch.doctor import doctor_command, examination
from sglang_ascend_moe.launch.doctor.examination import (
    ABSENT,
    WORKS,
    DoctorReport,
    HookReport,
    MachineReport,
    problems_of,
)
from sglang_ascend_moe.launch.doctor.live_server import text_of_states
from sglang_ascend_moe.serving.hooks import State
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, OK
from sglang_ascend_moe.serving.machine_limits import MachineLimits
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker.live_state import STATE_KEY, ExchangeState, PhaseState, RankState
from tests.http_server import serving

LIMITS = MachineLimits(
    memory_available=2**34, container_limit=None, container_available=None, file_bytes=None, address_space=None,
    locked_memory=2**23, descriptors=65535, descriptors_most=65535, descriptors_open=7,
)  # fmt: skip
MACHINE = MachineReport("x86_64", ascend_devices=0, cores=8, ranks=2, memfd=WORKS, limits=LIMITS)
APPLIED = HookReport("a.b", "after", "worker", "always", State.APPLIED.value, "", "it is needed", "")
NOT_FOR_US = HookReport(
    "a.c", "set", "worker", "host", State.NOT_APPLICABLE.value, "only for host", "it is so", "until SGLang 0.6.0"
)
FAILED = HookReport("a.d", "after", "worker", "always", State.FAILED.value, "no d", "the layer needs it", "")
HEALTHY = DoctorReport(
    versions={"sglang": "0.5.23"}, machine=MACHINE, backend="host", backend_reason="no accelerator", kernels=WORKS,
    plugin=WORKS, hooks=[APPLIED, NOT_FOR_US],
)  # fmt: skip


def with_problems(**changed: Any) -> DoctorReport:
    report = msgspec.structs.replace(HEALTHY, **changed)
    return msgspec.structs.replace(report, problems=list(problems_of(report)))


def machine(**changed: Any) -> dict[str, MachineReport]:
    limits = {name: changed.pop(name) for name in list(changed) if name in LIMITS.__struct_fields__}
    return {
        "machine": msgspec.structs.replace(MACHINE, **changed, limits=msgspec.structs.replace(LIMITS, **limits)),
    }


CASES = {
    "healthy": ({}, OK, []),
    "no SGLang": ({"versions": {"sglang": ABSENT}}, CANNOT, ["requirements.lock"]),
    "no backend": ({"backend": "none", "backend_reason": "torch sees a GPU"}, CANNOT, ["torch sees a GPU"]),
    "no kernels": ({"kernels": "they are not built"}, CANNOT, ["they are not built", "pip install -e ."]),
    "no memfd": (machine(memfd="Operation not permitted"), CANNOT, ["Operation not permitted", "seccomp"]),
    "no plugin": ({"plugin": "SGLang did not load it"}, CHECK_FAILED, ["did not load", "SGLANG_PLUGINS"]),
    "a failed hook": ({"hooks": [APPLIED, FAILED]}, CHECK_FAILED, ["a.d: no d", "the layer needs it", "0.5.23"]),
    "few descriptors": (machine(descriptors=168), CHECK_FAILED, ["RLIMIT_NOFILE is 168", "ulimit -n 169"]),
    "few descriptors for good": (machine(descriptors=168, descriptors_most=168), CHECK_FAILED, ["169, as root"]),
    "just enough descriptors": (machine(descriptors=169), OK, []),
    "more ranks than cores": (machine(ranks=9), OK, ["9 ranks share 8 cores", "--tp-size 8"]),
    "small files": (machine(file_bytes=4096), OK, ["4096 bytes", "ulimit -f"]),
    "small address space": (machine(address_space=4096), OK, ["4096 bytes", "ulimit -v"]),
}


@pytest.mark.parametrize(("changed", "code", "said"), CASES.values(), ids=CASES.keys())
def test_what_is_wrong_is_said_with_its_remedy(changed: dict[str, Any], code: int, said: list[str]):
    report = with_problems(**changed)
    assert report.exit_code() == code
    assert bool(report.problems) == bool(said)
    assert all(problem.remedy for problem in report.problems)
    # Before anything that is only found.
    begin, found, _ = doctor_command.text_of(report).partition("\nsglang  ")
    assert found
    assert [part for part in said if part not in begin] == []


VERDICTS = {
    "healthy": "--ascend-moe works here: backend host, SGLang 0.5.23",
    "more ranks than cores": "--ascend-moe works here, but slower than it could: backend host, SGLang 0.5.23",
    "no SGLang": "--ascend-moe does not work here: SGLang is not installed",
    "a failed hook": "--ascend-moe does not work here: a.d: no d; needed because the layer needs it",
    "few descriptors": "--ascend-moe does not work here: RLIMIT_NOFILE is 168; a worker of 2 ranks has about 169 open",
}


@pytest.mark.parametrize("case", VERDICTS)
def test_the_first_line_is_the_verdict(case: str):
    assert doctor_command.text_of(with_problems(**CASES[case][0])).splitlines()[0] == VERDICTS[case]


def test_of_several_problems_the_worst_is_the_verdict_and_the_others_are_counted():
    report = with_problems(kernels="they are not built", hooks=[FAILED], **machine(descriptors=168, ranks=9))
    text = doctor_command.text_of(report)
    assert text.splitlines()[0] == "--ascend-moe does not work here: they are not built (and 2 more)"
    # Each kind below a heading of its own, the worst first.
    assert sorted(map(text.index, doctor_command.HEADINGS.values())) == list(
        map(text.index, doctor_command.HEADINGS.values())
    )


def test_what_is_found_is_shown_with_units():
    text = doctor_command.text_of(HEALTHY)
    expected = ["0.5.23", "x86_64, 0 Ascend NPUs", "host (no accelerator)", "16.0 GiB (17,179,869,184 bytes)"]
    assert [part for part in expected if part not in text] == []


def test_hooks_are_counted_and_listed_when_they_are_asked_for():
    assert "1 applied, 1 not applicable; --hooks lists them" in doctor_command.text_of(HEALTHY)
    assert "a.b" not in doctor_command.text_of(HEALTHY)
    listed = doctor_command.text_of(HEALTHY, hooks=True)
    expected = ["  applied: after a.b", "  not applicable (only for host): set a.c", "it is needed", "it is so"]
    expected += ["      mends a fault of SGLang, until SGLang 0.6.0"]
    assert [part for part in expected if part not in listed] == []
    assert listed.count("mends a fault") == 1


@pytest.mark.parametrize("flags", [[], ["--hooks"]], ids=["json", "json and hooks"])
def test_json_has_the_whole_report(flags: list[str], monkeypatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(examination, "examine", lambda _ranks: HEALTHY)
    monkeypatch.setattr(doctor_command.logging, "disable", lambda _level: None)
    assert doctor_command.main(["--json", *flags]) == OK
    assert msgspec.json.decode(capsys.readouterr().out, type=DoctorReport) == HEALTHY


@pytest.mark.parametrize(
    ("host", "npu", "missing", "expected"),
    [
        (True, False, None, ("host", "no accelerator")),
        (False, True, None, ("npu", "Ascend910B3, with which nothing of this has run yet")),
        (False, True, "torch_npu sees no NPU", ("none", "torch_npu sees no NPU")),
        (False, False, None, ("none", "the host platform was not loaded")),
    ],
    ids=["host", "npu", "npu that lacks something", "another platform"],
)
def test_the_backend_is_what_sglang_would_serve_with(monkeypatch, host, npu, missing, expected):
    def refuse(_options: Options) -> None:
        if missing:
            raise Unsupported(missing)

    monkeypatch.setattr(examination.hooks, "on_host", lambda: host)
    monkeypatch.setattr(examination.hooks, "on_npu", lambda: npu)
    monkeypatch.setattr(examination, "refuse_machine_without_npu", refuse)
    monkeypatch.setattr(examination, "device_name", lambda: "Ascend910B3")
    monkeypatch.setattr(examination, "obstacle", lambda: "")
    assert examination.backend_of_process() == expected


def test_the_doctor_sees_the_kernels_work():
    assert examination._kernels() == WORKS


def test_versions_of_an_ascend_machine_are_read_where_they_are(tmp_path: Path):
    cann = tmp_path / "usr/local/Ascend/ascend-toolkit/latest"
    cann = cann / f"{examination.platform.machine()}-linux/ascend_toolkit_install.info"
    cann.parent.mkdir(parents=True)
    cann.write_text("package_name=Ascend-cann-toolkit\nversion=9.0.0\ninnerversion=V100\n")
    driver = tmp_path / "usr/local/Ascend/driver/version.info"
    driver.parent.mkdir()
    driver.write_text("Version=25.2.0\nascendhal_version=7.35.23\n")
    versions = examination.read_versions(tmp_path)
    assert (versions["cann"], versions["driver"]) == ("9.0.0", "25.2.0")


def test_a_machine_without_ascend_software_says_so(tmp_path: Path):
    versions = examination.read_versions(tmp_path)
    assert {name for name, version in versions.items() if version == ABSENT} == {"torch_npu", "cann", "driver"}


MEMORY = Exchange.memory(ranks=2, num_experts=8, hidden=64, max_tokens=16, topk=2)
PHASES = {
    "decode": PhaseState(calls=70, rounds=70, tokens=71, rows=142, dispatch_s=0.25, combine_s=0.125),
    "prefill": PhaseState(calls=3, rounds=9, tokens=48, rows=96, dispatch_s=0.5, combine_s=0.75),
}


def state(rank: int) -> RankState:
    exchange = ExchangeState(
        num_experts=8, hidden=64, topk=2, dtype="bfloat16", max_tokens=16, window_bytes=MEMORY.total,
        regions=MEMORY.by_region(), capacity_rows=MEMORY.capacity_rows, epochs=[82, 83], rows_by_rank=[5, 6],
        waited_s=[0.5, 1.5], phases=PHASES,
    )  # fmt: skip
    return RankState(rank=rank, ranks=2, options=Options(), exchanges=[exchange], graphs=GraphCounts("none", [], 0))


def test_the_text_of_a_live_server_has_its_numbers():
    text = text_of_states([state(0), state(1)])
    expected = [
        "2 ranks, 2 of them heard", "schedule auto", f"{MEMORY.total:,} bytes", f"rows {MEMORY.regions.rows:,}",
        "rank 0, epoch 82", "rank 1, epoch 83", "decode: 70 calls, 70 rounds, 71 tokens brought, 142 rows received",
        "prefill: 3 calls, 9 rounds", "dispatch 0.500 s", "held up by rank 1 1.500 s", "by rank: 5, 6", "rank 0 none",
    ]  # fmt: skip
    assert [part for part in expected if part not in text] == []


def staged(stage: int, rank: int) -> RankState:
    exchanges = state(rank).exchanges if stage else []
    return msgspec.structs.replace(state(rank), stage=stage, stages=2, exchanges=exchanges)


def test_ranks_of_all_stages_are_shown_and_one_without_an_exchange_says_so(server, capsys: pytest.CaptureFixture[str]):
    url, answer = server
    expected = [staged(stage, rank) for stage in (0, 1) for rank in (0, 1)]
    answer["body"] = info(list(reversed(expected)))
    assert doctor_command.main(["--url", url, "--json"]) == OK
    assert msgspec.json.decode(capsys.readouterr().out, type=list[RankState]) == expected
    assert doctor_command.main(["--url", url]) == OK
    shown = capsys.readouterr().out
    assert "2 ranks of each of 2 pipeline stages, 4 of them heard" in shown
    places = [shown.index(part) for part in ("stage 0", "no exchange", "stage 1", "rank 1, epoch 83")]
    assert places == sorted(places)


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, Any]]]:
    """An HTTP server and what it answers: `status` and `body`; `seen` is the last Authorization header."""
    answer: dict[str, Any] = {"status": 200, "body": b""}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer["seen"] = self.headers.get("Authorization")
            self.send_response(answer["status"] if self.path == "/server_info" else 404)
            self.end_headers()
            self.wfile.write(answer["body"])

    with serving(Handler) as port:
        yield f"http://127.0.0.1:{port}", answer


def info(*schedulers: list[RankState]) -> bytes:
    states = [{STATE_KEY: msgspec.to_builtins(ranks), "other": 1} for ranks in schedulers]
    return json.dumps({"internal_states": states}).encode()


@pytest.mark.parametrize(
    "schedulers",
    [[[state(0), state(1)]], [[state(1)], [state(0)]], [[state(0), state(1)], [state(0), state(1)]]],
    ids=["one for all", "each for itself", "all for all"],
)
def test_a_live_server_is_asked_for_every_rank(server, schedulers, capsys: pytest.CaptureFixture[str]):
    url, answer = server
    answer["body"] = info(*schedulers)
    assert doctor_command.main(["--url", f"{url}/", "--api-key", "secret", "--json"]) == OK
    assert answer["seen"] == "Bearer secret"
    printed = msgspec.json.decode(capsys.readouterr().out, type=list[RankState])
    assert printed == [state(0), state(1)]


OLD = {STATE_KEY: [{"rank": 0}]}


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        pytest.param(200, b'{"internal_states": [{}]}', "runs without --ascend-moe", id="another MoE layer"),
        pytest.param(200, json.dumps({"internal_states": [OLD]}).encode(), "another version", id="another version"),
        pytest.param(200, b"{}", "tells no internal states", id="not SGLang"),
        pytest.param(200, b"hello", "not an address of SGLang's server", id="no JSON"),
        pytest.param(401, b"", "answers 401 Unauthorized", id="no key"),
    ],
)
def test_a_server_that_cannot_tell_is_an_error(server, status, body, said, capsys: pytest.CaptureFixture[str]):
    url, answer = server
    answer.update(status=status, body=body)
    assert doctor_command.main(["--url", url]) == CHECK_FAILED
    assert said in capsys.readouterr().err


def test_a_server_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]):
    assert doctor_command.main(["--url", "http://127.0.0.1:1"]) == CHECK_FAILED
    assert "no server answers there" in capsys.readouterr().err
