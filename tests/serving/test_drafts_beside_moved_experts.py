"""Experts of a model lie, move and are counted as without drafts; those of its draft model stay where they are."""

import json

import pytest
import torch

from sglang_ascend_moe.launch.tiny_model.families import FIRST_SPARSE_LAYER
from sglang_ascend_moe.launch.tiny_model.model_sizes import TinySizes
from tests.serving.draft_forms import ACCEPTED, TREES, average, config_of
from tests.serving.draft_models import EAGLE3_SIZES, MTP_SIZES, PROMPTS
from tests.serving.family_prompts import DTYPE
from tests.serving.prompts import NEW_TOKENS
from tests.serving.test_redundant_experts import COUNTABLE, MOST_ROUNDS, REBALANCE, moves, recording

SIZES = {"deepseek_v3": MTP_SIZES, "qwen3_moe": EAGLE3_SIZES}
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600), pytest.mark.parametrize("family", SIZES)]


def placement(sizes: TinySizes, redundant: int) -> str:
    """Every other expert on the first rank, for `--init-expert-location`; the first ones lie on the second, too."""
    experts = [*range(0, sizes.experts, 2), *range(1, sizes.experts, 2), *range(redundant)]
    return json.dumps({"physical_to_logical_map": [experts] * sizes.layers})


@pytest.mark.parametrize("redundant", [0, 4])
def test_experts_lie_where_they_were_put_while_others_are_drafted_with(
    fork_server, drafted, undrafted_answers, family, redundant
):
    form, sizes = TREES[family], SIZES[family]
    config = config_of(drafted(family), form, DTYPE, "tp2-ep2")
    config.arguments["init_expert_location"] = placement(sizes, redundant)
    config.arguments["ep_num_redundant_experts"] = redundant
    with fork_server.start(config) as engine:
        found = engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True)
    assert [answer.tokens for answer in found.answers] == [answer.tokens for answer in undrafted_answers(family, DTYPE)]
    assert average(found.accepted) > ACCEPTED


def test_experts_move_while_others_are_drafted_with(fork_server, drafted, undrafted_answers, family):
    config = config_of(drafted(family), TREES[family], DTYPE, "tp2-ep2")
    config.arguments.update(REBALANCE)
    expected = [answer.tokens for answer in undrafted_answers(family, DTYPE)]
    with fork_server.start(config) as engine:
        for _ in range(MOST_ROUNDS):
            found = engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True)
            assert [answer.tokens for answer in found.answers] == expected
            if moved := moves(engine):
                break
        found = engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True)
    assert [answer.tokens for answer in found.answers] == expected
    assert average(found.accepted) > ACCEPTED
    assert {rank for rank, _ in moved} == {"0", "1"}
    assert min(int(places) for _, places in moved) > 0


def test_experts_are_counted_for_what_is_verified_and_not_for_what_is_drafted(fork_server, drafted, tmp_path, family):
    form, sizes = TREES[family], SIZES[family]
    config = config_of(drafted(family), form, DTYPE, "tp2-ep2")
    config.arguments.update(COUNTABLE)
    with fork_server.start(recording(config, tmp_path / "recorded")) as engine:
        engine.call("start_expert_distribution_record")
        found = engine.generate_with_cache(PROMPTS, NEW_TOKENS, together=True)
        engine.call("dump_expert_distribution_record")
    (record,) = (tmp_path / "recorded").glob("*.pt")
    counted = torch.load(record)["logical_count"].sum(dim=0).sum(dim=1).tolist()
    steps = sum(round(NEW_TOKENS / accepted) for accepted in found.accepted)
    rows = sum(map(len, PROMPTS)) + steps * form.tokens
    dense = {"deepseek_v3": FIRST_SPARSE_LAYER, "qwen3_moe": 0}[family]
    assert counted == [0] * dense + [rows * sizes.topk] * (sizes.layers - dense)
