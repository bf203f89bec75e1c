"""Context-parallel attention: ranks that share a request have each a part of its tokens in prefill, and bring those."""

from typing import Any, NamedTuple

import pytest

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.launcher.context_parallelism import FUSED_ATTENTION
from sglang_ascend_moe.serving.worker.live_state import RankState
from tests.serving.configurations import ours, ours_on_npu, stock
from tests.serving.draft_forms import ACCEPTED, NEXTN, average
from tests.serving.draft_models import PROMPTS as DRAFTED
from tests.serving.family_prompts import DTYPE, prompts_of_lengths
from tests.serving.prompts import NEW_TOKENS

# Batches with the shorter ones are not divided in two times two pieces per text.
PROMPTS = prompts_of_lengths(1, 2, 3, 5, 9, 17, 33, 64, 65, 127, 200, 300)
MOE_LAYERS = {"qwen3_moe": 4, "deepseek_v3": 3}
ZIGZAG = {"enable_prefill_cp": True, "cp_strategy": "zigzag", "attn_cp_size": 2}
INTERLEAVE = {**ZIGZAG, "cp_strategy": "interleave"}
CHUNKS = {"chunked_prefill_size": 64}
GROUPS = {"dp_size": 2, "enable_dp_attention": True, "enable_dp_lm_head": True}


class Form(NamedTuple):
    """part: tokens of the longest prompt that a rank brings to a layer, with the padding that makes parts equal."""

    family: str
    arguments: dict[str, Any]
    part: int


FORMS = {
    "cp2": Form("qwen3_moe", {"tp_size": 2, **ZIGZAG}, 152),
    "cp2, every other token": Form("qwen3_moe", {"tp_size": 2, **INTERLEAVE}, 150),
    "cp2, in chunks": Form("qwen3_moe", {"tp_size": 2, **ZIGZAG, **CHUNKS}, 4 * 32 + 24),
    "cp2 of tp2": Form("qwen3_moe", {"tp_size": 4, **ZIGZAG}, 76),
    "cp4": Form("qwen3_moe", {"tp_size": 4, **ZIGZAG, "attn_cp_size": 4}, 80),
    "cp2, prefill undivided": Form("qwen3_moe", {"tp_size": 2, "attn_cp_size": 2}, 300),
    "cp2, latent attention": Form("deepseek_v3", {"tp_size": 2, **ZIGZAG}, 152),
    "cp2, two stages": Form("qwen3_moe", {"tp_size": 2, "pp_size": 2, **ZIGZAG}, 152),
    "cp2 of dp2, latent attention": Form("deepseek_v3", {"tp_size": 4, **ZIGZAG, **GROUPS}, 152),
}
OFTEN = "cp2"
"""On every change; all at night."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "form",
    [pytest.param(form, id=name, marks=() if name == OFTEN else pytest.mark.nightly) for name, form in FORMS.items()],
)
def test_tokens_are_those_of_stock_sglang_on_one_rank(fork_server, tmp_path, record_comparisons, form: Form):
    checkpoint = write_checkpoint(tmp_path / "model", form.family)
    with fork_server.start(stock(checkpoint, DTYPE)) as engine:
        expected = engine.generate(PROMPTS, NEW_TOKENS, together=True)
    with fork_server.start(ours(checkpoint, DTYPE, enable_metrics=True, **form.arguments)) as engine:
        engine.generate(PROMPTS[-1:], 1)
        # What later stages have done is told later.
        brought = [tokens_of(state) for states in engine.inspect().states for state in states if state.stage == 0]
        # What was prefilled together is in the cache, but for a token, when it comes again.
        found = [engine.generate(PROMPTS, NEW_TOKENS, together=both) for both in (False, True)]
    part = MOE_LAYERS[form.family] // form.arguments.get("pp_size", 1) * form.part
    # With data-parallel attention one group has nothing.
    idle = len(brought) // 2 if "dp_size" in form.arguments else 0
    assert sorted(brought) == [0] * idle + [part] * (len(brought) - idle)
    outcomes = [outcome for answers in found for outcome in record_comparisons(expected, answers, DTYPE)]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert {outcome.equal_tokens for outcome in outcomes} == {NEW_TOKENS}


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "arguments",
    [{"tp_size": 2}, {"tp_size": 4}, {"tp_size": 2, "pp_size": 2}],
    ids=["cp2", "cp2 of tp2", "cp2, two stages"],
)
def test_tokens_on_emulated_npus_are_those_of_a_host(
    npu_fork_server, checkpoint, prompts, stock_answers, compare_all, arguments: dict[str, Any]
):
    config = ours_on_npu(checkpoint, enable_metrics=True, **ZIGZAG, **arguments)
    with npu_fork_server.start(config._replace(environment={FUSED_ATTENTION: "1"})) as engine:
        engine.generate(prompts[-1:], 1)
        brought = {tokens_of(state) for states in engine.inspect().states for state in states if state.stage == 0}
        outcomes = compare_all(engine, prompts, stock_answers("bfloat16"), "bfloat16", together=False)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    # Half of 700 tokens, padded to a multiple of 4.
    layers = MOE_LAYERS["qwen3_moe"] // arguments.get("pp_size", 1)
    assert brought == {2 * 352 * layers // arguments["tp_size"]}


@pytest.mark.nightly
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["cp2", "cp2 of dp2"])
def test_drafts_are_divided_as_texts_are(fork_server, drafted, undrafted_answers, record_comparisons, name: str):
    checkpoints = drafted("deepseek_v3")
    parallel = {"tp_size": 2} if name == "cp2" else {"tp_size": 4, **GROUPS}
    drafts = NEXTN["chain of 2"].arguments(checkpoints.draft)
    with fork_server.start(ours(checkpoints.model, DTYPE, **ZIGZAG, **parallel, **drafts)) as engine:
        generated = [engine.generate_with_cache(DRAFTED, NEW_TOKENS, together=both) for both in (False, True)]
    expected = undrafted_answers("deepseek_v3", DTYPE)
    outcomes = [outcome for each in generated for outcome in record_comparisons(expected, each.answers, DTYPE)]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert {outcome.equal_tokens for outcome in outcomes} == {NEW_TOKENS}
    assert average(generated[0].accepted) > ACCEPTED


def tokens_of(state: RankState) -> int:
    """Tokens that a rank has brought to all MoE layers in prefill."""
    [exchange] = state.exchanges
    return exchange.phases["prefill"].tokens
