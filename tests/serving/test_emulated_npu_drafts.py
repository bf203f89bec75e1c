"""Speculative decoding on emulated NPUs: SGLang's unmodified NPU backend drafts and verifies. No NPU has run this."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sglang_ascend_moe.launch.comparison import Answer
from tests.serving.configurations import PARALLEL, ours_on_npu
from tests.serving.draft_models import PROMPTS, Drafted
from tests.serving.engines import EngineConfig, ForkServer
from tests.serving.prompts import NEW_TOKENS

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

DTYPE = "bfloat16"
# The longest prompts take several chunks, also where two ranks with attention of their own share one.
CHUNKS = {"chunked_prefill_size": 256}
ACCEPTED = 1.5
"""Tokens that a step of a request gives at least, averaged over the prompts."""
GRAPHS = {"disable_cuda_graph": False, "cuda_graph_bs_decode": [4, 8], "ascend_moe_require_graphs": True}
RECIPES = {"ASCEND_USE_FIA": "1", "SGLANG_ENABLE_OVERLAP_PLAN_STREAM": "1"}
"""What published recipes set: another operator for attention, and what is prepared on a stream of its own."""


class Form(NamedTuple):
    """Chains: on an NPU SGLang verifies no others."""

    family: str
    algorithm: str
    steps: int

    def arguments(self, draft: Path | None) -> dict[str, Any]:
        """Those of an engine."""
        return {
            "speculative_algorithm": self.algorithm,
            "speculative_draft_model_path": None if draft is None else str(draft),
            "speculative_num_steps": self.steps,
            "speculative_eagle_topk": 1,
            "speculative_num_draft_tokens": self.steps + 1,
        }


FORMS = [Form("qwen3_moe", "EAGLE3", 3), Form("deepseek_v3", "NEXTN", 2)]
SETUPS = [("tp2-ep2", {}), ("tp2-ep2", GRAPHS), ("dp2-attention-ep2", {}), ("dp2-attention-ep2", GRAPHS)]


@pytest.fixture(scope="module")
def plain_answers(npu_fork_server: ForkServer, drafted: Callable[[str], Drafted]) -> Callable[[str, str], list[Answer]]:
    """Those of the same server without drafts, for a family and how it is spread over ranks."""
    known: dict[tuple[str, str], list[Answer]] = {}

    def answers(family: str, parallel: str) -> list[Answer]:
        if (family, parallel) not in known:
            config = ours_on_npu(drafted(family).model, **CHUNKS, **PARALLEL[parallel])
            with npu_fork_server.start(config) as engine:
                known[family, parallel] = engine.generate(PROMPTS, NEW_TOKENS, together=True)
        return known[family, parallel]

    return answers


def config_of(checkpoints: Drafted, form: Form, parallel: str, **more: Any) -> EngineConfig:
    return ours_on_npu(checkpoints.model, **form.arguments(checkpoints.draft), **CHUNKS, **PARALLEL[parallel], **more)


@pytest.mark.parametrize(
    ("parallel", "graphs"), SETUPS, ids=[f"{parallel}{' in graphs' if graphs else ''}" for parallel, graphs in SETUPS]
)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.family}-{form.algorithm}")
def test_drafts_give_the_tokens_of_the_same_server_without_them(
    npu_fork_server, drafted, plain_answers, record_comparisons, form, parallel, graphs
):
    """Eight requests are a batch on every rank; alone, a request leaves the other rank idle where ranks have their
    own."""
    config = config_of(drafted(form.family), form, parallel, enable_metrics=True, **graphs)
    with npu_fork_server.start(config) as engine:
        generated = [engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=both) for both in (True, False)]
        states = [rank for ranks in engine.inspect().states for rank in ranks]
    expected = plain_answers(form.family, parallel)
    outcomes = [outcome for each in generated for outcome in record_comparisons(expected, each.answers, DTYPE)]
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert all(sum(each.accepted) / len(PROMPTS) > ACCEPTED for each in generated)
    assert {(tuple(state.graphs.buckets), state.graphs.replays > 0) for state in states} == {
        (tuple(graphs.get("cuda_graph_bs_decode", [])), bool(graphs))
    }


def test_drafts_as_published_recipes_make_them_give_the_same_tokens(
    npu_fork_server, drafted, plain_answers, record_comparisons
):
    form, parallel = FORMS[0], "tp2-ep2"
    config = config_of(drafted(form.family), form, parallel, **GRAPHS)._replace(environment=RECIPES)
    with npu_fork_server.start(config) as engine:
        generated = engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True)
    outcomes = record_comparisons(plain_answers(form.family, parallel), generated.answers, DTYPE)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert sum(generated.accepted) / len(PROMPTS) > ACCEPTED
