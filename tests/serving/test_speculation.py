"""Speculative decoding with the exchange inside is lossless, and drafts are accepted.

On every change one server is judged by transformers; at night all forms by stock SGLang with and without drafts.
"""

import pytest

from sglang_ascend_moe.launch.comparison import TOLERANCES, compare
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from tests.serving.batch_steps import steps_of
from tests.serving.configurations import PARALLEL, ours, stock
from tests.serving.draft_forms import ACCEPTED, CHUNKS, EAGER, EAGLE3, NEXTN, TREES, average, config_of
from tests.serving.draft_models import MTP_SIZES, PROMPTS, write_mtp_checkpoint
from tests.serving.engines import EngineFailure
from tests.serving.family_prompts import DTYPE, REFERENCE_BOUND
from tests.serving.prompts import NEW_TOKENS
from tests.serving.reference_models import ReferenceModel
from tests.serving.rounding import distances, farther


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
def test_every_form_gives_the_tokens_of_stock_sglang_without_drafts(
    fork_server, drafted, undrafted_answers, record_comparisons, family, form, parallel
):
    """Eight requests together, then one by one: with data-parallel attention that leaves the other rank idle."""
    with fork_server.start(config_of(drafted(family), form, DTYPE, parallel, "tell_batches")) as engine:
        generated = [engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=both) for both in (True, False)]
    expected = undrafted_answers(family, DTYPE)
    outcomes = [outcome for each in generated for outcome in record_comparisons(expected, each.answers, DTYPE)]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert {outcome.equal_tokens for outcome in outcomes} == {NEW_TOKENS}
    assert average(generated[0].accepted) > (1.2 if form.steps == 1 else ACCEPTED)
    idle = {step.rank for step in steps_of(engine.log.read_text()) if step.kind == "idle"}
    assert idle == ({0, 1} if parallel == "dp2-attention-ep2" else set())


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("parallel", ["tp2-ep2", "dp2-attention-ep2"])
@pytest.mark.parametrize("family", TREES)
def test_answers_in_bfloat16_are_as_far_from_float32_as_those_of_the_same_server_without_drafts(
    fork_server, drafted, undrafted_answers, family, parallel
):
    """Rounding decides tokens of these models, and of several tokens at a time it is another (see `rounding`)."""
    checkpoints = drafted(family)
    plain = ours(checkpoints.model, "bfloat16", **CHUNKS, **PARALLEL[parallel])
    found = []
    for config in (config_of(checkpoints, TREES[family], "bfloat16", parallel), plain):
        with fork_server.start(config) as engine:
            found.append(engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True))
    drafts, without = (distances(undrafted_answers(family, DTYPE), each.answers) for each in found)
    assert farther(drafts, without) == []
    assert average(found[0].accepted) > ACCEPTED


@pytest.mark.nightly
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_stock_sglang_with_the_same_drafts_gives_the_same_tokens_in_as_many_steps(
    fork_server, drafted, record_comparisons, family
):
    form = TREES[family]
    checkpoints = drafted(family)
    with fork_server.start(stock(checkpoints.model, DTYPE, **form.arguments(checkpoints.draft))) as engine:
        expected = engine.generate_with_cache(PROMPTS, NEW_TOKENS)
    with fork_server.start(config_of(checkpoints, form, DTYPE, "tp2-ep2", steps=EAGER)) as engine:
        found = engine.generate_with_cache(PROMPTS, NEW_TOKENS)
    outcomes = record_comparisons(expected.answers, found.answers, DTYPE)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert found.accepted == expected.accepted


@pytest.mark.nightly
def test_a_draft_model_with_other_experts_has_windows_of_its_own(fork_server, drafted, undrafted_answers, tmp_path):
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
    expected = undrafted_answers("deepseek_v3", DTYPE)
    outcomes = [compare(*pair, TOLERANCES[DTYPE]) for pair in zip(expected, found, strict=True)]
    assert {outcome.equal_tokens for outcome in outcomes} == {NEW_TOKENS}


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
