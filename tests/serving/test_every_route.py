"""Every route of a server, with every body that it may not want, in bursts, while others are served."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.servers.server_process import ServerProcess
from tests.serving import routes
from tests.serving.clients import Traffic, ask, post
from tests.serving.prompts import NEW_TOKENS

READY_SECONDS = 600.0
LIST_ROUTES = """
from sglang.srt.entrypoints.http_server import app
for route in app.routes:
    for method in sorted(getattr(route, "methods", None) or ()):
        print(method, route.path)
"""

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(3000)]


def undescribed_routes(described: list[routes.Route]) -> list[routes.Route]:
    """The routes of SGLang's application that its OpenAPI document leaves out."""
    listed = subprocess.run([sys.executable, "-c", LIST_ROUTES], capture_output=True, text=True, check=True)
    known = {(route.method, route.path) for route in described}
    made = (line.split() for line in listed.stdout.splitlines() if line.count(" ") == 1)
    return [
        routes.Route(method, path.translate(routes.NO_BRACES), {}, ())
        for method, path in made
        if (method, path.translate(routes.NO_BRACES)) not in known
    ]


@pytest.mark.parametrize(
    "arguments", [[], ["--dp-size", "2", "--enable-dp-attention"]], ids=["tp2-ep2", "dp2-attention-ep2"]
)
def test_no_request_ends_a_server_or_changes_the_answers_of_others(
    checkpoint: Path, prompts, tmp_path: Path, monkeypatch, arguments
):
    # Some ask for files in folders of any name.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SGLANG_TORCH_PROFILER_DIR", str(tmp_path / "traces"))
    usual = ["--model-path", str(checkpoint), "--device", "cpu", "--tp-size", "2", "--ascend-moe"]
    limits = ["--max-running-requests", "16", "--cuda-graph-bs-decode", "4", "16", "--enable-metrics"]
    with ServerProcess([*usual, *limits, *arguments], tmp_path / "server.log") as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        url = server.url
        few = prompts[:8]
        expected = [ask(url, prompt, NEW_TOKENS).tokens for prompt in few]
        described = routes.described_routes(url)
        made = routes.all_calls([*described, *undescribed_routes(described)])
        with Traffic(url, few, NEW_TOKENS, clients=2) as traffic:
            traffic.wait_for_answer()
            said = routes.call_all(url, made)
        assert {name: answer for name, answer in said.items() if answer.status >= 500 and answer.status != 501} == {}
        # Some that ask for everything to be aborted reach those of others too.
        assert [place for place, found in traffic.answers if found.tokens not in (None, expected[place])] == []
        assert [ask(url, prompt, NEW_TOKENS).tokens for prompt in few] == expected


@pytest.mark.parametrize("mode", ["abort", "retract", "in_place"])
def test_the_first_request_after_a_pause_is_answered(checkpoint: Path, prompts, tmp_path: Path, mode):
    usual = ["--model-path", str(checkpoint), "--device", "cpu", "--tp-size", "2", "--ascend-moe"]
    with ServerProcess([*usual, "--dp-size", "2", "--enable-dp-attention"], tmp_path / "server.log") as server:
        server.wait_until_ready(READY_SECONDS, lambda _progress: None)
        expected = ask(server.url, prompts[0], NEW_TOKENS)
        for _ in range(20):
            paused = post(server.url, json.dumps({"mode": mode}).encode(), "/pause_generation")[0]
            continued = post(server.url, b"{}", "/continue_generation")[0]
            assert (paused, continued) == (200, 200)
            assert ask(server.url, prompts[0], NEW_TOKENS) == expected
