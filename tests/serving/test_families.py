"""The model families that people serve, judged by stock SGLang and by Hugging Face's implementations.

One start of each engine serves all questions about it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sglang_ascend_moe.launch.comparison import Answer
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.sglang_release import TESTED, installed
from tests.serving.configurations import PARALLEL, ours, stock
from tests.serving.engines import EngineConfig, EngineFailure, ForkServer
from tests.serving.family_prompts import DTYPE, FAMILIES, PROMPTS, REFERENCE_BOUND
from tests.serving.prompts import NEW_TOKENS
from tests.serving.reference_models import DAMAGES, ReferenceModel

# Graphs take longer to capture than these answers take; the nightly tests of families run with them.
WITHOUT_GRAPHS = {"disable_cuda_graph": True}


class Family(NamedTuple):
    """A family under test. `answers` starts stock SGLang for "stock", our layer for a name of PARALLEL; once each."""

    name: str
    checkpoint: Path
    answers: Callable[[str], list[Answer]]


@pytest.fixture(scope="module")
def family(request: pytest.FixtureRequest, fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Family:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    known: dict[str, list[Answer]] = {}

    def config_of(setup: str) -> EngineConfig:
        if setup == "stock":
            return stock(checkpoint, DTYPE)
        return ours(checkpoint, DTYPE, **PARALLEL[setup], **WITHOUT_GRAPHS)

    def answers(setup: str) -> list[Answer]:
        if setup not in known:
            with fork_server.start(config_of(setup)) as engine:
                known[setup] = engine.generate(PROMPTS, NEW_TOKENS, together=True)
        return known[setup]

    return Family(request.param, checkpoint, answers)


# On every change those that differ most from the model of the other tests, a Qwen3-MoE; of earlier releases all, but
# not on every change.
OFTEN = ("deepseek_v3", "minimax_m2") if installed() == TESTED[-1] else FAMILIES


def families(often: tuple[str, ...]) -> pytest.MarkDecorator:
    """Every family, at night but for those of `often`."""
    params = [pytest.param(name, marks=() if name in often else pytest.mark.nightly) for name in FAMILIES]
    return pytest.mark.parametrize("family", params, indirect=True, scope="module")


every_family = families(OFTEN)
# What one family shows on every change is nightly for the others.
one_family = families(("deepseek_v3",))


def require_tokens_of_stock(family: Family, setup: str, record_comparisons) -> None:
    outcomes = record_comparisons(family.answers("stock"), family.answers(setup), DTYPE)
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert [outcome.equal_tokens for outcome in outcomes] == [NEW_TOKENS] * len(PROMPTS)


def require_logprobs_of_transformers(family: Family, setup: str) -> None:
    reference = ReferenceModel(family.checkpoint)
    distances = list(map(reference.distance, PROMPTS, family.answers(setup)))
    assert max(distances) < REFERENCE_BOUND


@every_family
def test_two_ranks_give_the_tokens_of_stock_sglang_on_one(family, record_comparisons):
    require_tokens_of_stock(family, "tp2-ep2", record_comparisons)


@one_family
def test_two_ranks_with_data_parallel_attention_give_them_too(family, record_comparisons):
    require_tokens_of_stock(family, "dp2-attention-ep2", record_comparisons)


@every_family
@pytest.mark.parametrize("setup", ["stock", "tp2-ep2"])
def test_logprobs_are_those_of_transformers(family, setup):
    require_logprobs_of_transformers(family, setup)


@one_family
def test_logprobs_with_data_parallel_attention_are_those_of_transformers(family):
    require_logprobs_of_transformers(family, "dp2-attention-ep2")


@every_family
def test_the_bound_tells_every_wrong_model(family):
    answers = family.answers("tp2-ep2")
    for damage in DAMAGES[family.name]:
        wrong = ReferenceModel(family.checkpoint, damage)
        distances = list(map(wrong.distance, PROMPTS, answers))
        assert min(distances) > 100 * REFERENCE_BOUND, damage.__name__


def test_a_model_whose_block_was_never_compared_is_refused(fork_server: ForkServer, checkpoint: Path):
    with pytest.raises(EngineFailure, match="MoE blocks of the class Qwen3MoeSparseMoeBlock, which --ascend-moe was"):
        fork_server.start(ours(checkpoint, DTYPE, "forget_moe_blocks", **WITHOUT_GRAPHS))
