"""One server through its life: hostile clients, traffic that comes and goes, rest, and the death of a rank."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from safetensors.torch import load_file, save_file

from sglang_ascend_moe.launch.doctor import doctor_command
from sglang_ascend_moe.launch.servers.server_process import ServerProcess, group_members, log_tail
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from sglang_ascend_moe.launch.top import top_command
from sglang_ascend_moe.launch.trace.timeline import read_timelines
from sglang_ascend_moe.launch.trace.trace_summary import rows_of_layers
from sglang_ascend_moe.serving.launcher.engine_processes import title_of
from sglang_ascend_moe.serving.launcher.exit_codes import OK
from tests.launch.monitoring.prometheus_process import Prometheus
from tests.serving import faulty_server, routes
from tests.serving.clients import Traffic, ask, malformed_requests, malformed_texts, post
from tests.serving.cpu_time import cpu_seconds
from tests.serving.leftovers import MARK, NOTHING, Surroundings, temporary_names
from tests.serving.prompts import NEW_TOKENS
from tests.serving.titled_processes import titled
from tests.soak.steady import require_steady

READY_SECONDS = 600.0
RANKS = 2
EXPERTS = TinySizes().experts
REST_SECONDS = 5.0
RESTS = 4
"""One of which has to be quiet: where other tests share the machine, the same work takes twice as long."""
MOST_AT_REST = 0.05
"""Of a core, for each rank; everything that belongs to the server counts."""
TENSOR_UPDATE = ("/begin_weight_update", "/update_weights_from_tensor", "/end_weight_update")
LAST_LINE = "The server ends: sglang::scheduler"

pytestmark = pytest.mark.timeout(900)


class Served:
    """A server that answers, what surrounds it, and its answers to the prompts when nobody else asks."""

    def __init__(
        self, process: ServerProcess, surroundings: Surroundings, prompts: list[list[int]], traces: Path, slow: Path
    ) -> None:
        """slow: as long as this file is there, rank 1 is slow."""
        self.process = process
        self.url = process.url
        self.surroundings = surroundings
        self.traces = traces
        self.slow = slow
        self.prompts = prompts
        self.expected = [ask(self.url, prompt, NEW_TOKENS).tokens for prompt in prompts]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def update(self, checkpoint: Path) -> int:
        """The status with which a change of weights is answered."""
        body = {"model_path": str(checkpoint), "recapture_cuda_graph": True}
        return post(self.url, json.dumps(body).encode(), "/update_weights_from_disk")[0]

    def traffic(self) -> Traffic:
        return Traffic(self.url, self.prompts, NEW_TOKENS, clients=4)

    def require_right_answers(self) -> None:
        assert [ask(self.url, prompt, NEW_TOKENS).tokens for prompt in self.prompts] == self.expected


@pytest.fixture(scope="module")
def served(checkpoint: Path, prompts: list[list[int]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    arguments = ["--model-path", str(checkpoint), "--device", "cpu", "--tp-size", str(RANKS), "--ascend-moe"]
    limits = ["--max-running-requests", "16", "--cuda-graph-bs-decode", "4", "16"]
    surroundings = Surroundings()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, surroundings.mark)
        traces = tmp_path_factory.mktemp("traces")
        patch.setenv("SGLANG_TORCH_PROFILER_DIR", str(traces))
        folder = tmp_path_factory.mktemp("server")
        patch.setenv(faulty_server.SLOW, str(folder / "slow"))
        command = [*arguments, *limits, "--enable-metrics"]
        with ServerProcess(command, folder / "server.log", module=faulty_server.__name__) as server:
            server.wait_until_ready(READY_SECONDS, lambda _progress: None)
            yield Served(server, surroundings, prompts[:8], traces, folder / "slow")


def test_it_tells_its_state(served, capsys):
    """The doctor, the live view and Prometheus are told of both ranks, over HTTP."""
    assert doctor_command.main(["--url", served.url]) == OK
    assert "2 ranks, 2 of them heard" in capsys.readouterr().out
    assert top_command.main(["--url", served.url, "--once", "--interval", "0.1"]) == OK
    assert "the server is idle" in capsys.readouterr().out
    metrics = requests.get(f"{served.url}/metrics", timeout=60).text
    assert [rank for rank in (0, 1) if f'ascend_moe_rounds_total{{moe_ep_rank="{rank}"' not in metrics] == []


def test_requests_that_no_server_wants_are_refused_under_load(served):
    with served.traffic() as traffic:
        traffic.wait_for_answer()
        bodies = {name: ("/generate", data) for name, data in malformed_requests(served.prompts[3])}
        bodies |= dict(malformed_texts())
        with ThreadPoolExecutor(4) as pool:
            answers = pool.map(lambda request: post(served.url, request[1], request[0])[0], bodies.values())
            said = dict(zip(bodies, answers, strict=True))
    assert {name: status for name, status in said.items() if not 400 <= status < 500} == {}
    assert [place for place, answer in traffic.answers if answer.tokens != served.expected[place]] == []
    served.require_right_answers()


def test_a_slow_rank_is_named_by_an_alert_and_no_panel_of_the_dashboard_is_empty(served, tmp_path):
    served.slow.touch()
    with Prometheus(tmp_path, served.url) as prometheus, served.traffic():
        prometheus.wait_for_alert("AscendMoeSlowRank", f"rank 1 holds ranks of {served.address} up")
        prometheus.wait_for_every_answer()
    served.slow.unlink()
    served.require_right_answers()


@pytest.mark.parametrize(
    "requests", [pytest.param(96, id="96"), pytest.param(2000, id="2000", marks=pytest.mark.nightly)]
)
def test_traffic_that_comes_and_leaves_is_answered_and_leaves_nothing(request, served, requests):
    rounds = 4 if requests < 1000 else 10
    processes = group_members(served.process.pid)
    require_steady(request, served.url, served.prompts, served.expected, processes, requests, rounds)


def test_it_burns_no_core_when_nobody_asks(served, record_property):
    processes = group_members(served.process.pid)
    for _ in range(RESTS):
        before = {pid: cpu_seconds(pid) for pid in processes}
        begun = time.monotonic()
        # Time has to pass here: what is measured is the CPU time of doing nothing.
        threading.Event().wait(REST_SECONDS)
        took = {f"{title_of(pid)} {pid}": cpu_seconds(pid) - before[pid] for pid in processes}
        share = sum(took.values()) / (time.monotonic() - begun)
        if share < MOST_AT_REST * RANKS:
            break
    record_property("cores at rest", f"{share:.3f}")
    assert share < MOST_AT_REST * RANKS, took


def test_every_route_answers_whoever_says_nothing(served):
    made = [call for route in routes.described_routes(served.url) for call in route.calls_without_fields()]
    said = {str(call): routes.call(served.url, call) for call in made}
    assert {name: answer for name, answer in said.items() if answer.status >= 500 and answer.status != 501} == {}
    assert [name for name, answer in said.items() if answer.status == 501 and not answer.text] == []
    served.require_right_answers()
    # `/start_profile` needs no words, and `/stop_profile` has come after it.
    assert len(list(served.traces.glob("*.trace.json.gz"))) == RANKS


def test_steps_are_profiled_once_at_a_time(served, tmp_path):
    def start(**fields: object) -> int:
        return post(served.url, json.dumps({"output_dir": str(tmp_path), **fields}).encode(), "/start_profile")[0]

    assert [start(num_steps=2), start()] == [200, 400]
    served.require_right_answers()
    assert len(list(tmp_path.glob("*.trace.json.gz"))) == RANKS
    # The steps of the exchanges in these steps, beside them.
    (steps,) = tmp_path.glob("*-steps")
    (timeline,) = read_timelines(steps)
    assert timeline.missing == []
    assert {one.layer for one in rows_of_layers(timeline)} == set(range(TinySizes().layers))
    assert post(served.url, b"", "/stop_profile")[0] == 400


def test_stages_and_further_profiles_are_kept_apart(served, tmp_path):
    asked = json.dumps({"output_dir": str(tmp_path), "profile_by_stage": True, "num_steps": 1}).encode()
    for number in (1, 2):
        assert post(served.url, asked, "/start_profile")[0] == 200
        served.require_right_answers()
        for stage in ("EXTEND", "DECODE"):
            folders = list(tmp_path.glob(f"*-steps-{stage}"))
            assert len(folders) == number
            # One session in each folder, of all ranks.
            assert [[one.missing for one in read_timelines(folder)] for folder in folders] == [[[]]] * number
    assert post(served.url, b"", "/stop_profile")[0] == 400


def test_weights_that_cannot_be_loaded_leave_those_that_are_served(served, checkpoint, tmp_path):
    """On every rank."""
    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    weights = next(broken.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert served.update(broken) == 400
    served.require_right_answers()
    # Of the first rank's part alone.
    tensors = json.dumps({"serialized_named_tensors": ["AAAA"]}).encode()
    said = [post(served.url, tensors if "tensor" in route else b"{}", route)[0] for route in TENSOR_UPDATE]
    assert said == [200, 400, 200]
    served.require_right_answers()


def test_a_rank_with_hot_experts_is_named_by_an_alert(served, checkpoint, tmp_path):
    """Its experts are those of every token, by the weights of the routers; then those of before are loaded."""
    hot = shutil.copytree(checkpoint, tmp_path / "hot")
    weights = load_file(hot / "model.safetensors")
    for name, router in weights.items():
        if name.endswith("mlp.gate.weight"):
            # Of a row and its negative one is above 0 for any token: half of the second rank's experts.
            cold, first, second = router.tensor_split((EXPERTS // 2, EXPERTS * 3 // 4))
            cold.zero_()
            second.copy_(-first)
    save_file(weights, hot / "model.safetensors", metadata={"format": "pt"})
    assert served.update(hot) == 200
    with Prometheus(tmp_path, served.url) as prometheus, served.traffic():
        prometheus.wait_for_alert("AscendMoeHotExpert", f"rank 1 of {served.address} receives 2.00")
    assert served.update(checkpoint) == 200
    served.require_right_answers()


def test_a_killed_rank_ends_it_by_name_and_leaves_nothing(served):
    with Traffic(served.url, served.prompts, NEW_TOKENS) as traffic:
        traffic.wait_for_answer()
        [victim] = titled(served.process.pid, "scheduler_TP1")
        os.kill(victim, signal.SIGKILL)
        assert served.process.wait_until_ended(60) == 1, log_tail(served.process.log)
    assert (
        served.process.log.read_text().splitlines()[-1].startswith(f"{LAST_LINE}_TP1_EP1 (process {victim}) was killed")
    )
    wrong = [place for place, answer in traffic.answers if answer.tokens not in (None, served.expected[place])]
    assert wrong == []
    # What is left the command that started the server removes: in this file it is told how far the server is.
    assert temporary_names(served.process.temporary) == {"stages"}
    served.process.stop()
    assert served.surroundings.leftovers() == NOTHING
