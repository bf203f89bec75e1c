"""Every route of a router and of the instances behind it, with every body that they may not want."""

from pathlib import Path

import pytest

from tests.launch.disagg.deployed import Deployed, description
from tests.serving import routes
from tests.serving.clients import ask
from tests.serving.prompts import NEW_TOKENS, chosen_prompts


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_no_request_ends_a_deployment(checkpoint: Path, tmp_path: Path, monkeypatch):
    # Some ask for files in folders of any name.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SGLANG_TORCH_PROFILER_DIR", str(tmp_path / "traces"))
    prompts = chosen_prompts()[:4]
    with Deployed(description(checkpoint), tmp_path / "deployment") as deployed:
        deployed.wait_until_serving()
        router = deployed.url("router")
        expected = [ask(router, prompt, NEW_TOKENS) for prompt in prompts]
        # The router has the routes of an instance that it knows, and says so of the others.
        made = routes.all_calls(routes.described_routes(deployed.url("prefill-0")))
        for name in ("router", "prefill-0", "decode-0"):
            routes.call_all(deployed.url(name), made)
            assert [ask(router, prompt, NEW_TOKENS) for prompt in prompts] == expected, name
        deployed.interrupt()
        assert deployed.wait_until_ended() == 0
        assert deployed.left_behind() == []
