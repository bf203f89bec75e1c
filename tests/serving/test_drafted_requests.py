"""Requests of all kinds to servers that draft: sampled ones, ones that end in the middle of a draft, and more."""

from itertools import pairwise

import pytest

from sglang_ascend_moe.launch.servers.server_process import ServerProcess
from tests.serving.clients import answer_all_kinds, ask
from tests.serving.configurations import ours, stock
from tests.serving.draft_forms import TREES, config_of
from tests.serving.draft_models import PROMPTS
from tests.serving.family_prompts import DTYPE
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]

SAMPLED = {"temperature": 0.9, "top_p": 0.9, "top_k": 50}


@pytest.mark.parametrize("parallel", ["tp2-ep2", "dp2-attention-ep2"])
def test_requests_end_in_the_middle_of_a_draft(fork_server, drafted, undrafted_answers, parallel):
    """At each of the first lengths, and at a token that stops them; others of the batch go on."""
    expected = [answer.tokens for answer in undrafted_answers("qwen3_moe", DTYPE)]
    with fork_server.start(config_of(drafted("qwen3_moe"), TREES["qwen3_moe"], DTYPE, parallel)) as engine:
        by_length = {length: engine.generate_with_cache(PROMPTS, length, together=True) for length in range(2, 13)}
        stops = [tokens[5] for tokens in expected]
        stopped = engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True, stop_token_ids=stops, ignore_eos=False)
        after = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    for length, found in by_length.items():
        assert [answer.tokens for answer in found.answers] == [tokens[:length] for tokens in expected]
    # A request that took as many steps as a shorter one did not get all that its last step gave.
    steps = [[round(length / accepted) for accepted in found.accepted] for length, found in by_length.items()]
    repeated = [any(one == two for one, two in pairwise(taken)) for taken in zip(*steps, strict=True)]
    assert sum(repeated) > len(PROMPTS) / 2
    ended = [next(tokens[: place + 1] for place, token in enumerate(tokens) if token in stops) for tokens in expected]
    assert [answer.tokens for answer in stopped.answers] == ended
    assert [answer.tokens for answer in after] == expected


@pytest.mark.parametrize("drafts", [False, True], ids=["without drafts", "with drafts"])
def test_the_same_seed_samples_the_tokens_that_it_samples_in_stock_sglang(fork_server, drafted, drafts):
    """On one rank, and on two that share their attention, one request after the other."""
    checkpoints, form = drafted("qwen3_moe"), TREES["qwen3_moe"]
    arguments = form.arguments(checkpoints.draft) if drafts else {}
    sampled = []
    for config in (stock(checkpoints.model, DTYPE, **arguments), ours(checkpoints.model, DTYPE, **arguments)):
        with fork_server.start(config) as engine:
            sampled.append(engine.generate_with_cache(PROMPTS, NEW_TOKENS, **SAMPLED))
    assert [answer.tokens for answer in sampled[1].answers] == [answer.tokens for answer in sampled[0].answers]
    assert sampled[1].accepted == sampled[0].accepted


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
