"""Requests of all kinds to servers that draft."""

import pytest

from sglang_ascend_moe.launch.servers.server_process import ServerProcess
from tests.serving.clients import answer_all_kinds, ask
from tests.serving.draft_models import PROMPTS
from tests.serving.family_prompts import DTYPE
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]


def test_requests_of_all_kinds_are_answered_and_spoil_no_draft(drafted, undrafted_answers, tmp_path):
    """Sampled, bound to a grammar, cached, in chunks, several answers each, and left in the middle of a draft."""
    flags = ["--speculative-algorithm", "NEXTN", "--speculative-num-steps", "3", "--speculative-eagle-topk", "2"]
    flags += ["--speculative-num-draft-tokens", "5", "--chunked-prefill-size", "128", "--dtype", DTYPE]
    flags += ["--device", "cpu", "--ascend-moe", "--tp-size", "2", "--max-running-requests", "8"]
    arguments = ["--model-path", str(drafted("deepseek_v3").model), *flags]
    with ServerProcess(arguments, tmp_path / "server.log") as server:
        server.wait_until_ready(600, lambda _progress: None)
        answer_all_kinds(server.url, PROMPTS)
        found = [ask(server.url, prompt, NEW_TOKENS).tokens for prompt in PROMPTS]
    assert found == [answer.tokens for answer in undrafted_answers("deepseek_v3", DTYPE)]
