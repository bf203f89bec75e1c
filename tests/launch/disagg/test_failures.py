"""Whatever of a deployment is killed or interrupted: clients learn of it, nothing hangs, nothing stays.

Each test starts a deployment of its own, which takes three quarters of a minute on two idle cores. All use the same
port, and each kill is that of a deployment which has just answered: so each shows that traffic flows after the one
before.
"""

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from sglang_ascend_moe.launch.disagg.generate_client import GenerateClient, RequestFailed
from sglang_ascend_moe.launch.servers.server_process import free_port
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, INTERRUPTED, OK
from tests.launch.disagg.conftest import Expected
from tests.launch.disagg.deployed import READY_SECONDS, Deployed, description
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

ERROR_SECONDS = 45.0
"""In which clients are told: less than their own patience."""
LONG = 1000

VICTIMS: dict[str, Callable[[Deployed], int]] = {
    "prefill server": lambda deployed: deployed.started["prefill-0"]["pid"],
    "decode server": lambda deployed: deployed.started["decode-0"]["pid"],
    "rank 1 of prefill": lambda deployed: deployed.rank_process("prefill-0", 1),
    "rank 0 of decode": lambda deployed: deployed.rank_process("decode-0", 0),
    "router": lambda deployed: deployed.started["router"]["pid"],
}
MOMENTS: dict[str, dict[str, Any]] = {
    "SGLang is imported": {"kind": "waiting", "name": "up"},
    "a server was just forked": {"kind": "starting", "name": "decode-0"},
    "servers allocate": {"kind": "waiting", "stage": "starting to serve"},
    "the router starts": {"kind": "starting", "name": "router"},
}


@pytest.fixture(scope="module")
def port() -> int:
    """Of the router of every deployment, one after the other."""
    return free_port()


@pytest.mark.parametrize("victim", VICTIMS)
def test_a_kill_during_traffic_ends_everything(
    victim: str, checkpoint: Path, expected: Expected, port: int, tmp_path: Path
):
    with Deployed(description(checkpoint, port=port), tmp_path / "deployment") as deployed:
        deployed.wait_until_serving()
        client = GenerateClient(deployed.url("router"), timeout=60)
        assert client.ask(expected.prompts[-1], NEW_TOKENS).answer == expected.cold[-1]
        streams = [client.pieces(prompt, LONG, stream=True) for prompt in expected.prompts[:4]]
        for stream in streams:
            next(stream)
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(list, stream) for stream in streams]
            # Prefill is busy as well when the kill comes.
            stop = threading.Event()
            prefills = [pool.submit(ask_until, client, expected.prompts[-1], stop) for _ in range(2)]
            os.kill(VICTIMS[victim](deployed), signal.SIGKILL)
            late = wait([*answers, *prefills], ERROR_SECONDS).not_done
            stop.set()
            assert not late
        assert [type(answer.exception()) for answer in answers] == [RequestFailed] * len(answers)
        failed = deployed.wait_for("failed", ERROR_SECONDS)
        assert failed["code"] == "SERVER_ENDED"
        assert failed["name"] in victim or failed["name"].split("-")[0] in victim
        assert deployed.wait_until_ended() == CHECK_FAILED
        assert deployed.left_behind() == []


def ask_until(client: GenerateClient, prompt: list[int], stop: threading.Event) -> None:
    """Ask again and again, each time another prompt; returns at the first request that fails."""
    for length in range(len(prompt), 1, -1):
        if stop.is_set():
            return
        try:
            client.ask(prompt[:length][::-1], 1)
        except RequestFailed:
            return


def test_everything_ends_with_up_when_that_is_killed(checkpoint: Path, expected: Expected, port: int, tmp_path: Path):
    with Deployed(description(checkpoint, port=port), tmp_path / "deployment") as deployed:
        deployed.wait_until_serving()
        client = GenerateClient(deployed.url("router"), timeout=60)
        assert client.ask(expected.prompts[-1], NEW_TOKENS).answer == expected.cold[-1]
        os.kill(deployed.pid, signal.SIGKILL)
        assert deployed.wait_until_ended() == -signal.SIGKILL
        # Nobody is there to remove empty folders: that of the router, and one that importing SGLang makes.
        assert [name for name in deployed.left_behind() if not deployed.is_empty_folder(name)] == []


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_during_the_start_leaves_nothing(moment: str, checkpoint: Path, port: int, tmp_path: Path):
    with Deployed(description(checkpoint, port=port), tmp_path / "deployment") as deployed:
        deployed.wait_for(timeout=READY_SECONDS, **MOMENTS[moment])
        deployed.interrupt()
        # People press it again.
        deployed.interrupt()
        assert deployed.wait_until_ended() == INTERRUPTED
        assert deployed.left_behind() == []


@pytest.mark.parametrize(("prefill", "kind"), [(1, "mini-lb"), (2, "rust")], ids=["mini-lb", "two prefill servers"])
def test_other_shapes_are_bit_identical_and_ctrl_c_ends_them(
    prefill: int, kind: str, checkpoint: Path, expected: Expected, tmp_path: Path
):
    with Deployed(description(checkpoint, prefill=prefill, kind=kind), tmp_path / "deployment") as deployed:
        serving = deployed.wait_until_serving()
        assert len(serving["prefill"]) == prefill
        client = GenerateClient(deployed.url("router"), timeout=60)
        before = prefills(deployed, prefill)
        for prompt, wanted in zip(expected.prompts, expected.cold, strict=True):
            assert client.ask(prompt, NEW_TOKENS).answer == wanted, len(prompt)
            assert client.ask(prompt, NEW_TOKENS, stream=True).answer.tokens == wanted.tokens
        assert all(now > then for then, now in zip(before, prefills(deployed, prefill), strict=True))
        deployed.interrupt()
        assert deployed.wait_until_ended() == OK
        assert [event["name"] for event in deployed.events if event.get("by_itself") is False] == []
        assert deployed.left_behind() == []


def prefills(deployed: Deployed, instances: int) -> list[int]:
    """MoE layers that each prefill server has run, on its rank 0."""
    states = [deployed.states(f"prefill-{number}")[0] for number in range(instances)]
    return [state.exchanges[0].phases["prefill"].calls for state in states]


def test_instances_that_do_not_fit_are_not_paired(checkpoint: Path, tmp_path: Path):
    with Deployed(description(checkpoint, **{"page-size": 16}), tmp_path / "deployment") as deployed:
        failed = deployed.wait_for("failed", READY_SECONDS)
        assert failed["code"] == "DO_NOT_FIT"
        assert "page_size is 1 on the prefill and 16 on the decode instance (--page-size)" in failed["why"]
        assert deployed.wait_until_ended() == CHECK_FAILED
        assert deployed.left_behind() == []
