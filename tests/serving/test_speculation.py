"""Speculative decoding with the exchange inside is lossless, and drafts are accepted.

On every change one server is judged by transformers; at night all forms by stock SGLang with and without drafts.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sglang_ascend_moe.launch.comparison import TOLERANCES, Answer, compare
from sglang_ascend_moe.launch.servers.server_process import ServerProcess
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from tests.serving.clients import answer_all_kinds, ask
from tests.serving.configurations import PARALLEL, ours, stock
from tests.serving.draft_models import EAGLE3_SIZES, MTP_SIZES, PROMPTS, Drafted, write_mtp_checkpoint
from tests.serving.engines import EngineConfig, EngineFailure, ForkServer
from tests.serving.family_prompts import DTYPE, REFERENCE_BOUND
from tests.serving.prompts import NEW_TOKENS
from tests.serving.reference_models import ReferenceModel

# The longest prompts take several chunks.
CHUNKS = {"chunked_prefill_size": 128}
ACCEPTED = 1.5
"""Tokens that a step of a request gives at least, averaged over the prompts; measured: 1.9 to 3.0."""


class Form(NamedTuple):
    """How tokens are drafted: algorithm, and steps, branches and tokens of a tree."""

    algorithm: str
    steps: int
    branches: int
    tokens: int

    def arguments(self, draft: Path | None) -> dict[str, Any]:
        """Those of an engine."""
        return {
            "speculative_algorithm": self.algorithm,
            "speculative_draft_model_path": None if draft is None else str(draft),
            "speculative_num_steps": self.steps,
            "speculative_eagle_topk": self.branches,
            "speculative_num_draft_tokens": self.tokens,
            **CHUNKS,
        }


NEXTN = {
    "1 step": Form("NEXTN", 1, 1, 2),
    "chain of 2": Form("NEXTN", 2, 1, 3),
    "tree": Form("NEXTN", 3, 2, 5),
    "chain of 4": Form("EAGLE", 4, 1, 5),
}
EAGLE3 = {"chain of 3": Form("EAGLE3", 3, 1, 4), "tree": Form("EAGLE3", 3, 2, 6)}


@pytest.fixture(scope="module")
def stock_answers(fork_server: ForkServer, drafted: Callable[[str], Drafted]) -> Callable[[str, str], list[Answer]]:
    """Those of stock SGLang on one rank, without drafts, for a family and a dtype."""
    known: dict[tuple[str, str], list[Answer]] = {}

    def answers(family: str, dtype: str) -> list[Answer]:
        if (family, dtype) not in known:
            with fork_server.start(stock(drafted(family).model, dtype)) as engine:
                known[family, dtype] = engine.generate(PROMPTS, NEW_TOKENS)
        return known[family, dtype]

    return answers


def average(values: list[float]) -> float:
    return sum(values) / len(values)


GRAPHS = {"ascend_moe_require_graphs": True}
EAGER = {"disable_cuda_graph": True}


def config_of(
    checkpoints: Drafted, form: Form, dtype: str, parallel: str, *patches: str, steps: dict[str, bool] = GRAPHS
) -> EngineConfig:
    """steps: in graphs, or eager."""
    return ours(checkpoints.model, dtype, *patches, **form.arguments(checkpoints.draft), **PARALLEL[parallel], **steps)


def test_trees_of_an_mtp_layer_give_the_tokens_of_transformers(fork_server, drafted):
    """With data-parallel attention: one request leaves the other rank idle, eight are a batch on each."""
    checkpoints = drafted("deepseek_v3")
    with fork_server.start(config_of(checkpoints, NEXTN["tree"], DTYPE, "dp2-attention-ep2")) as engine:
        together = engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True)
        alone = engine.generate_with_cache(PROMPTS, NEW_TOKENS)
    reference = ReferenceModel(checkpoints.plain)
    for answers in (together.answers, alone.answers):
        assert max(map(reference.distance, PROMPTS, answers)) < REFERENCE_BOUND
        assert {len(answer.tokens) for answer in answers} == {NEW_TOKENS}
        chosen = [(answer.tokens, [position[0].token for position in answer.candidates]) for answer in answers]
        assert [best for _, best in chosen] == [tokens for tokens, _ in chosen]
    assert max(alone.cached_tokens) > 0
    assert average(together.accepted) > ACCEPTED


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parallel", PARALLEL)
@pytest.mark.parametrize(
    ("family", "form"),
    [
        *(pytest.param("deepseek_v3", form, id=f"deepseek_v3-{name}") for name, form in NEXTN.items()),
        pytest.param("glm4_moe", NEXTN["tree"], id="glm4_moe-tree"),
        *(pytest.param("qwen3_moe", form, id=f"qwen3_moe-{name}") for name, form in EAGLE3.items()),
        pytest.param("minimax_m2", EAGLE3["tree"], id="minimax_m2-tree"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_form_gives_the_tokens_of_stock_sglang_without_drafts(
    fork_server, drafted, stock_answers, record_comparisons, dtype, family, form, parallel
):
    with fork_server.start(config_of(drafted(family), form, dtype, parallel)) as engine:
        generated = [engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=both) for both in (True, False)]
    expected = stock_answers(family, dtype)
    outcomes = [outcome for each in generated for outcome in record_comparisons(expected, each.answers, dtype)]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    if dtype == "float32":
        assert {outcome.equal_tokens for outcome in outcomes} == {NEW_TOKENS}
    assert average(generated[0].accepted) > (1.2 if form.steps == 1 else ACCEPTED)


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_stock_sglang_with_the_same_drafts_gives_the_same_tokens_in_as_many_steps(
    fork_server, drafted, record_comparisons, family
):
    form = {"deepseek_v3": NEXTN, "qwen3_moe": EAGLE3}[family]["tree"]
    checkpoints = drafted(family)
    with fork_server.start(stock(checkpoints.model, DTYPE, **form.arguments(checkpoints.draft))) as engine:
        expected = engine.generate_with_cache(PROMPTS, NEW_TOKENS)
    with fork_server.start(config_of(checkpoints, form, DTYPE, "tp2-ep2", steps=EAGER)) as engine:
        found = engine.generate_with_cache(PROMPTS, NEW_TOKENS)
    outcomes = record_comparisons(expected.answers, found.answers, DTYPE)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert found.accepted == expected.accepted


@pytest.mark.nightly
def test_a_draft_model_with_other_experts_has_windows_of_its_own(fork_server, drafted, stock_answers, tmp_path):
    sizes: TinySizes = MTP_SIZES._replace(experts=8, topk=2)
    other = write_mtp_checkpoint(tmp_path, "deepseek_v3", sizes)
    checkpoints = drafted("deepseek_v3")._replace(draft=other.model)
    config = config_of(checkpoints, NEXTN["chain of 2"], DTYPE, "tp2-ep2")
    config.arguments["enable_metrics"] = True
    with fork_server.start(config) as engine:
        found = engine.generate(PROMPTS, NEW_TOKENS, together=True)
        [ranks] = engine.inspect().states
    experts = [[exchange.num_experts for exchange in rank.exchanges] for rank in ranks]
    assert experts == [[MTP_SIZES.experts, sizes.experts]] * 2
    expected = stock_answers("deepseek_v3", DTYPE)
    outcomes = [compare(*pair, TOLERANCES[DTYPE]) for pair in zip(expected, found, strict=True)]
    assert {outcome.equal_tokens for outcome in outcomes} == {NEW_TOKENS}


def placement(sizes: TinySizes, redundant: int) -> str:
    """Every other expert on the first rank, for `--init-expert-location`; the first ones lie on the second, too."""
    experts = [*range(0, sizes.experts, 2), *range(1, sizes.experts, 2), *range(redundant)]
    return json.dumps({"physical_to_logical_map": [experts] * sizes.layers})


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
@pytest.mark.parametrize("redundant", [0, 4])
def test_experts_lie_where_they_were_put_while_others_are_drafted_with(
    fork_server, drafted, stock_answers, family, redundant
):
    form, sizes = {"deepseek_v3": (NEXTN, MTP_SIZES), "qwen3_moe": (EAGLE3, EAGLE3_SIZES)}[family]
    config = config_of(drafted(family), form["tree"], DTYPE, "tp2-ep2")
    config.arguments["init_expert_location"] = placement(sizes, redundant)
    config.arguments["ep_num_redundant_experts"] = redundant
    with fork_server.start(config) as engine:
        found = engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True)
    assert [answer.tokens for answer in found.answers] == [answer.tokens for answer in stock_answers(family, DTYPE)]
    assert average(found.accepted) > ACCEPTED


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_requests_of_all_kinds_are_answered_and_spoil_no_draft(drafted, stock_answers, tmp_path):
    """Sampled, bound to a grammar, cached, in chunks, several answers each, and left in the middle of a draft."""
    flags = ["--speculative-algorithm", "NEXTN", "--speculative-num-steps", "3", "--speculative-eagle-topk", "2"]
    flags += ["--speculative-num-draft-tokens", "5", "--chunked-prefill-size", "128", "--dtype", DTYPE]
    flags += ["--device", "cpu", "--ascend-moe", "--tp-size", "2", "--max-running-requests", "8"]
    arguments = ["--model-path", str(drafted("deepseek_v3").model), *flags]
    with ServerProcess(arguments, tmp_path / "server.log") as server:
        server.wait_until_ready(600, lambda _progress: None)
        answer_all_kinds(server.url, PROMPTS)
        found = [ask(server.url, prompt, NEW_TOKENS).tokens for prompt in PROMPTS]
    assert found == [answer.tokens for answer in stock_answers("deepseek_v3", DTYPE)]


@pytest.mark.nightly
def test_a_rank_that_drafts_once_more_ends_the_engine_and_both_passes_are_named(fork_server, drafted):
    config = config_of(drafted("deepseek_v3"), NEXTN["chain of 2"], DTYPE, "tp2-ep2", "draft_once_more", steps=EAGER)
    engine = fork_server.start(config)
    try:
        with pytest.raises(EngineFailure):
            engine.generate(PROMPTS, NEW_TOKENS)
        log = engine.log.read_text()
    finally:
        engine.kill()
    said = (
        "ProtocolMismatch: ranks make different exchanges: rank 0 began the model, decode, in its batch as forward"
        " pass 2, rank 1 began the draft model, decode, in its batch as forward pass 2"
    )
    assert said in log
