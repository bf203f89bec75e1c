"""A deployment of a prefill and a decode server answers what one server answers, and ends as a whole.

The tests share one deployment, in this order: the last one kills a rank of it.
"""

import os
import signal
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import msgspec
import pytest

from sglang_ascend_moe import Exchange
from sglang_ascend_moe.launch.comparison import TOLERANCES, Answer, compare
from sglang_ascend_moe.launch.disagg import disagg_command
from sglang_ascend_moe.launch.disagg.deployment_events import Failure
from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient, Reply, RequestFailed
from sglang_ascend_moe.launch.disagg.questions import write_recorded
from sglang_ascend_moe.launch.doctor import doctor_command
from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK
from sglang_ascend_moe.serving.stages import Stage
from sglang_ascend_moe.serving.worker.live_state import RankState
from tests.launch.disagg.conftest import CHECK_LONGEST, CHECK_TOKENS, Expected
from tests.launch.disagg.deployed import CHUNK_TOKENS, MAX_RUNNING_REQUESTS, Deployed
from tests.serving.clients import malformed_requests, post
from tests.serving.prompts import NEW_TOKENS

# The first test waits for the reference and the deployment, which start one after the other.
pytestmark = pytest.mark.timeout(900)

RANKS = 2
IDLE_SECONDS = 60.0
IMPATIENT_SECONDS = 0.1
ERROR_SECONDS = 45.0
"""In which clients are told: less than their own patience."""
SIZES = TinySizes()
LEFT_OUT_BY_THE_ROUTER = {
    "a broken pattern to stop at", "an unknown parameter", "beam search", "embeddings in place of some",
}  # fmt: skip
"""Requests with a field that the router does not know: it passes on the others, and they are answered."""


@pytest.fixture(scope="module")
def client(deployment: Deployed) -> GenerateClient:
    return GenerateClient(deployment.url("router"), timeout=60)


def differing(prompts: list[list[int]], wanted: list[Answer], replies: list[Reply]) -> list[str]:
    """Where tokens or logprobs are not bit for bit those wanted, by prompt."""
    found = []
    for prompt, answer, reply in zip(prompts, wanted, replies, strict=True):
        pairs = list(zip(answer.candidates, reply.answer.candidates, strict=True))
        places = [place for place, (ours, theirs) in enumerate(pairs) if ours != theirs]
        if places:
            found.append(f"prompt of {len(prompt)} tokens, at {places}, first {pairs[places[0]]}")
        elif reply.answer.tokens != answer.tokens:
            found.append(f"prompt of {len(prompt)} tokens: {reply.answer.tokens} instead of {answer.tokens}")
    return found


def test_requests_are_bit_identical_to_one_server_cold_and_from_the_prefix_cache(
    deployment: Deployed, client: GenerateClient, expected: Expected
):
    # What `up` asked for itself is forgotten.
    assert not any(deployment.load_when_idle("prefill-0", IDLE_SECONDS).values())
    cold = [client.ask(prompt, NEW_TOKENS) for prompt in expected.prompts]
    assert differing(expected.prompts, expected.cold, cold) == []
    cached = [client.ask(prompt, NEW_TOKENS) for prompt in expected.prompts]
    assert [reply.cached_tokens for reply in cached] == [len(prompt) - 1 for prompt in expected.prompts]
    assert differing(expected.prompts, expected.cached, cached) == []


def test_the_longest_prompts_take_several_chunks(expected: Expected):
    assert max(map(len, expected.prompts)) > 2 * CHUNK_TOKENS


def test_streams_are_bit_identical_too(client: GenerateClient, expected: Expected):
    replies = [client.ask(prompt, NEW_TOKENS, stream=True) for prompt in expected.prompts[::4]]
    assert differing(expected.prompts[::4], expected.cached[::4], replies) == []
    assert min(reply.pieces for reply in replies) > 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_eight_requests_at_a_time_are_equal_by_the_margin_rule(
    client: GenerateClient, expected: Expected, stream: bool
):
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda prompt: client.ask(prompt, NEW_TOKENS, stream=stream), expected.prompts))
    outcomes = [
        compare(answer, reply.answer, TOLERANCES["bfloat16"])
        for answer, reply in zip(expected.cached, replies, strict=True)
    ]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []


def test_aborted_requests_leave_nothing_behind(deployment: Deployed, client: GenerateClient, expected: Expected):
    for prompt in expected.prompts[-4:]:
        pieces = client.pieces(prompt, 400, stream=True)
        next(pieces)
        pieces.close()
    # These leave while their prompts are read, moved or queued.
    impatient = GenerateClient(deployment.url("router"), timeout=IMPATIENT_SECONDS)
    with ThreadPoolExecutor(8) as pool:
        left = list(pool.map(lambda prompt: leaves(impatient, prompt), expected.prompts[-4:]))
    assert all(left)
    require_idle(deployment)
    assert client.ask(expected.prompts[-1], NEW_TOKENS).answer == expected.cold[-1]


def test_requests_that_no_server_takes_are_refused_and_leave_nothing_behind(
    deployment: Deployed, client: GenerateClient, expected: Expected
):
    requests = dict(malformed_requests(expected.prompts[3]))
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda data: post(deployment.url("router"), data)[0], requests.values())
        said = dict(zip(requests, answers, strict=True))
    assert {name for name, status in said.items() if not 400 <= status < 500} == LEFT_OUT_BY_THE_ROUTER
    require_idle(deployment)
    assert client.ask(expected.prompts[-1], NEW_TOKENS).answer == expected.cold[-1]


def require_idle(deployment: Deployed) -> None:
    """Neither server holds a request or a token any more, within a minute; the prefix caches are empty then."""
    idle = {"busy": 0, "num_running_reqs": 0, "num_waiting_reqs": 0, "num_used_tokens": 0}
    for name in ("prefill-0", "decode-0"):
        assert deployment.load_when_idle(name, IDLE_SECONDS) == idle, name


def leaves(client: GenerateClient, prompt: list[int]) -> bool:
    """Whether the client's patience ended before its answer began."""
    try:
        client.ask(prompt[::-1], 400)
    except RequestFailed:
        return True
    return False


@pytest.mark.parametrize(
    ("name", "tokens", "captures"),
    [("prefill-0", CHUNK_TOKENS // RANKS, False), ("decode-0", MAX_RUNNING_REQUESTS // RANKS, True)],
)
def test_doctor_shows_the_window_and_the_graphs_of_a_role_and_nothing_of_the_other(
    deployment: Deployed, name: str, tokens: int, captures: bool, capsys: pytest.CaptureFixture[str]
):
    assert doctor_command.main(["--url", deployment.url(name), "--json"]) == OK
    states = msgspec.json.decode(capsys.readouterr().out, type=list[RankState])
    assert len(states) == RANKS
    for state in states:
        (exchange,) = state.exchanges
        planned = Exchange.memory(
            ranks=RANKS,
            num_experts=SIZES.experts,
            hidden=SIZES.hidden,
            topk=SIZES.topk,
            max_tokens=tokens,
            distinct_topk=True,
        )
        assert (exchange.max_tokens, exchange.window_bytes) == (tokens, planned.total)
        other = {"prefill": "decode", "decode": "prefill"}[name.split("-")[0]]
        assert exchange.phases[other].calls == 0
        assert state.options.require_graphs == captures
        assert (state.graphs.replays > 0) == captures
        assert bool(state.graphs.buckets) == captures


def test_check_finds_the_answers_of_one_server(deployment: Deployed, expected: Expected, tmp_path: Path):
    answers = tmp_path / "answers.json"
    write_recorded(answers, expected.recorded)
    few = ["--new-tokens", str(CHECK_TOKENS), "--longest", str(CHECK_LONGEST)]
    assert disagg_command.main(["check", "--url", deployment.url("router"), "--reference", str(answers), *few]) == OK


def test_instances_have_said_how_they_started(deployment: Deployed):
    stages = [stage.value for stage in Stage]
    waited = [event for event in deployment.events if event["event"] == "waiting"]
    for name in ("prefill-0", "decode-0"):
        told = [stages.index(event["stage"]) for event in waited if event["name"] == name]
        assert told == sorted(set(told))
        # One that is passed between two looks is not told.
        assert told[-1] > stages.index(Stage.CONNECTING.value)


def test_a_rank_that_is_killed_during_traffic_ends_everything_and_is_reported(
    deployment: Deployed, client: GenerateClient, expected: Expected
):
    streams = [client.pieces(prompt, 1000, stream=True) for prompt in expected.prompts[:4]]
    for stream in streams:
        next(stream)
    with ThreadPoolExecutor(len(streams)) as pool:
        answers = [pool.submit(list, stream) for stream in streams]
        os.kill(deployment.rank_process("decode-0", 1), signal.SIGKILL)
        assert not wait(answers, ERROR_SECONDS).not_done
    assert [type(answer.exception()) for answer in answers] == [RequestFailed] * len(answers)
    with pytest.raises(RequestFailed):
        client.ask(expected.prompts[0], 1)
    failed = deployment.wait_for("failed", ERROR_SECONDS)
    assert (failed["name"], failed["code"]) == ("decode-0", Failure.SERVER_ENDED)
    assert failed["log_tail"]
    assert deployment.wait_until_ended() == CHECK_FAILED
    assert deployment.left_behind() == []
