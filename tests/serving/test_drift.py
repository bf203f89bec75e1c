"""A rank that samples other tokens than those it shares its attention with ends the server, by name and in time."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe.launch.servers.server_process import ServerProcess, log_tail
from tests.serving import faulty_server
from tests.serving.clients import Traffic, answer_all_kinds, ask, body_of, post
from tests.serving.faulty_server import LAST_TOKEN, Drift
from tests.serving.prompts import NEW_TOKENS

READY_SECONDS = 600.0
END_SECONDS = 60.0
"""In which a server has to be gone: less than PATIENT has it."""
PATIENT = ["--ascend-moe-timeout", "120"]
SHORT_TIMEOUT = ["--ascend-moe-timeout", "3"]
REST_SECONDS = 12.0
GRAPHS = {"graphs": ["--cuda-graph-bs-decode", "4", "8"], "eager": ["--disable-cuda-graph"]}
SCHEDULING = {"overlapped": [], "in turn": ["--disable-overlap-schedule"]}
CHUNKS = ["--chunked-prefill-size", "128"]
GROUPS_OF_TWO = ["--tp-size", "4", "--dp-size", "2", "--enable-dp-attention"]
SAMPLED = {
    Drift.OTHER_TOKEN: r"token \d+",
    Drift.NAN: r"token \d+",
    Drift.END: f"token {LAST_TOKEN}",
}

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that makes rank 1 drift."""
    monkeypatch.setenv(faulty_server.DRIFT, str(tmp_path / "drift"))
    return tmp_path / "drift"


def tell(sign: Path, drift: Drift) -> None:
    """Rank 1 reads the file as soon as it is there: it is there at once as a whole."""
    written = sign.with_suffix(".written")
    written.write_text(drift.value)
    written.rename(sign)


def arguments_for(checkpoint: Path, *more: str) -> list[str]:
    limits = ["--max-running-requests", "8"]
    return ["--model-path", str(checkpoint), "--device", "cpu", "--ascend-moe", *limits, *more]


def last_line_after(server: ServerProcess, sign: Path, drift: Drift, prompts: list[list[int]]) -> str:
    """The server's last line when rank 1 drifts while requests run that stop at `LAST_TOKEN`."""
    over = threading.Event()
    with ThreadPoolExecutor(len(prompts)) as pool:
        try:
            for prompt in prompts:
                pool.submit(ask_again_and_again, server.url, prompt, over)
            tell(sign, drift)
            code = server.wait_until_ended(END_SECONDS)
        finally:
            over.set()
    assert code == 1, log_tail(server.log)
    return server.log.read_text().splitlines()[-1]


def ask_again_and_again(url: str, prompt: list[int], over: threading.Event) -> None:
    """Until it is over, or the server is gone: however late rank 1 drifts, some request runs."""
    body = body_of(prompt, 1000)
    body["sampling_params"] |= {"ignore_eos": False, "stop_token_ids": [LAST_TOKEN]}
    while not over.is_set():
        post(url, msgspec.json.encode(body))


@pytest.mark.parametrize(
    ("drift", "graphs", "scheduling"),
    [
        pytest.param(
            drift,
            graphs,
            scheduling,
            id=f"{drift.value}-{graphs}-{scheduling}",
            marks=[] if (drift, graphs, scheduling) == (Drift.END, "graphs", "overlapped") else pytest.mark.nightly,
        )
        for drift in SAMPLED
        for graphs in GRAPHS
        for scheduling in SCHEDULING
    ],
)
def test_another_token_ends_a_server_that_served_requests_of_all_kinds(
    checkpoint, prompts, sign, tmp_path, drift, graphs, scheduling
):
    arguments = arguments_for(checkpoint, "--tp-size", "2", *PATIENT, *CHUNKS, *GRAPHS[graphs], *SCHEDULING[scheduling])
    with ServerProcess(arguments, tmp_path / "server.log", module=faulty_server.__name__) as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        answer_all_kinds(server.url, prompts)
        last = last_line_after(server, sign, drift, prompts[:4])
    assert re.search(r"sglang::scheduler_TP[01]_EP[01] \(process \d+\) raised ProtocolMismatch: ", last), last
    sampled = rf"rank 0 sampled token \d+, rank 1 sampled {SAMPLED[drift]}"
    assert re.search(rf"in step \d+ \((decode|extend) of \d requests\), request \d of the batch: {sampled}", last), last


@pytest.mark.nightly
def test_ranks_are_compared_within_their_attention_group(checkpoint, prompts, sign, tmp_path):
    arguments = arguments_for(checkpoint, *GROUPS_OF_TWO, *PATIENT, *GRAPHS["eager"])
    with ServerProcess(arguments, tmp_path / "server.log", module=faulty_server.__name__) as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        answer_all_kinds(server.url, prompts)
        last = last_line_after(server, sign, Drift.OTHER_TOKEN, prompts[:8])
    assert "raised ProtocolMismatch: " in last
    assert re.search(r"rank 0 sampled token \d+, rank 1 sampled token \d+", last), last


@pytest.mark.nightly
def test_a_rank_that_hangs_is_named_in_time_and_one_that_rests_is_not(checkpoint, prompts, sign, tmp_path):
    arguments = arguments_for(checkpoint, "--tp-size", "2", *SHORT_TIMEOUT)
    with ServerProcess(arguments, tmp_path / "server.log", module=faulty_server.__name__) as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        expected = ask(server.url, prompts[0], NEW_TOKENS).tokens
        # Time has to pass here: several times what a rank waits for another.
        threading.Event().wait(REST_SECONDS)
        assert ask(server.url, prompts[0], NEW_TOKENS).tokens == expected
        with Traffic(server.url, prompts[:4], NEW_TOKENS) as traffic:
            traffic.wait_for_answer()
            tell(sign, Drift.HANG)
            code = server.wait_until_ended(END_SECONDS)
        last = server.log.read_text().splitlines()[-1]
    assert code == 1, log_tail(server.log)
    named = r"raised PeerTimeout: rank 1 had not come to \w+ of SGLang's group \S+ \(ranks 0, 1\), step \d+, within 4 s"
    assert re.search(named, last), last
