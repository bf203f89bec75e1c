"""Redundant experts change no token, nor does moving them while serving; SGLang's recorder counts what we dispatch."""

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes
from tests.serving.configurations import ours, stock
from tests.serving.engines import Engine, EngineConfig, EngineFailure
from tests.serving.prompts import NEW_TOKENS

SIZES = TinySizes()
REDUNDANT = 4
# Every batch is forwarded exactly once: no prefix from a cache, no step that is taken before the last one is known.
COUNTABLE = {"disable_radix_cache": True, "disable_overlap_schedule": True, "expert_distribution_recorder_mode": "stat"}
# Two rounds of the prompts come before the experts move.
REBALANCE = {
    "ep_num_redundant_experts": REDUNDANT,
    "enable_eplb": True,
    "eplb_rebalance_num_iterations": 2 * NEW_TOKENS,
    "expert_distribution_recorder_buffer_size": 2 * NEW_TOKENS,
}
MOST_ROUNDS = 8
HASHED = re.compile(r"(before|after) rank (\d+) layer (\d+) expert (\d+) of (\d+) ([0-9a-f]{64})")
AGREED = re.compile(r"TP(\d).*All ranks agreed to move experts: (\d+) places of layers")


class Hashed(NamedTuple):
    """A line of `hash_experts_that_move`. when: before or after a move. parts: tensors of the expert."""

    when: str
    rank: str
    layer: str
    expert: str
    parts: str
    digest: str


def placement() -> list[list[int]]:
    """Physical expert -> logical expert, another order in every layer; the last of them have two places.

    In some layers both are on the same rank.
    """
    experts = [*range(SIZES.experts), *range(SIZES.experts - REDUNDANT, SIZES.experts)]
    return [
        [experts[(place * 7 + layer) % len(experts)] for place in range(len(experts))] for layer in range(SIZES.layers)
    ]


def recording(config: EngineConfig, folder: Path) -> EngineConfig:
    """The engine with its recorder writing into a new folder."""
    folder.mkdir()
    return config._replace(environment={"SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR": str(folder)})


def recorded_counts(engine: Engine, folder: Path, prompts: list[list[int]]) -> torch.Tensor:
    """Rows of every logical expert in every layer, by SGLang's recorder, for the prompts and their answers."""
    engine.call("start_expert_distribution_record")
    engine.generate(prompts, NEW_TOKENS, together=True)
    engine.call("dump_expert_distribution_record")
    (record,) = folder.glob("*.pt")
    return torch.load(record)["logical_count"].sum(dim=0)


def test_redundant_experts_change_no_token_and_the_recorder_sees_the_dispatch(
    fork_server, checkpoint, prompts, stock_answers, compare_all, tmp_path
):
    static = {
        "ep_num_redundant_experts": REDUNDANT,
        "init_expert_location": json.dumps({"physical_to_logical_map": placement()}),
    }
    with fork_server.start(recording(ours(checkpoint, "float32", **COUNTABLE, **static), tmp_path / "ours")) as engine:
        assert_equal(compare_all(engine, prompts, stock_answers("float32"), "float32"), prompts)
        counted = recorded_counts(engine, tmp_path / "ours", prompts)
    with fork_server.start(recording(stock(checkpoint, "float32", **COUNTABLE), tmp_path / "stock")) as engine:
        expected = recorded_counts(engine, tmp_path / "stock", prompts)
    forwarded = sum(map(len, prompts)) + len(prompts) * (NEW_TOKENS - 1)
    assert counted.sum(dim=1).tolist() == [forwarded * SIZES.topk] * SIZES.layers
    assert torch.equal(counted, expected)


def test_tokens_stay_the_same_when_experts_move_while_serving(
    fork_server, checkpoint, prompts, stock_answers, compare_all
):
    with fork_server.start(ours(checkpoint, "float32", "hash_experts_that_move", **REBALANCE)) as engine:
        for _ in range(MOST_ROUNDS):
            assert_equal(compare_all(engine, prompts, stock_answers("float32"), "float32"), prompts)
            if moves(engine):
                break
        assert_equal(compare_all(engine, prompts, stock_answers("float32"), "float32"), prompts)
    # The other rank may have said it later.
    moved = moves(engine)
    assert {rank for rank, _ in moved} == {"0", "1"}
    assert min(int(places) for _, places in moved) > 0
    assert_each_expert_is_the_same_everywhere(engine, parts=2)


@pytest.mark.nightly
def test_ranks_that_move_experts_differently_all_stop_and_name_the_layer(fork_server, checkpoint, prompts):
    config = ours(checkpoint, "float32", "move_experts_differently", **REBALANCE)
    with pytest.raises(EngineFailure), fork_server.start(config) as engine:
        for _ in range(MOST_ROUNDS):
            engine.generate(prompts, NEW_TOKENS, together=True)
    # The first rank that says so ends the server, perhaps before the other has said it; the last line repeats it.
    refusals = re.findall(r"ProtocolMismatch: placement of experts: (.*)", engine.log.read_text())
    assert len(set(refusals)) == 1
    assert re.match(
        rf"the logical expert at physical expert 0 of layer {SIZES.layers - 1} is \d+ on rank 0", refusals[0]
    )
    assert moves(engine) == []


def moves(engine: Engine) -> list[tuple[str, str]]:
    """(rank, places that changed) of every move that a rank reported."""
    return AGREED.findall(engine.log.read_text())


def assert_no_token_changes_when_experts_move(engine: Engine, prompts: list[list[int]]) -> None:
    """Nor a logprob; both ranks report a move."""
    before = engine.generate(prompts, NEW_TOKENS)
    for _ in range(MOST_ROUNDS):
        if moves(engine):
            break
        engine.generate(prompts, NEW_TOKENS, together=True)
    assert engine.generate(prompts, NEW_TOKENS) == before
    moved = moves(engine)
    assert min(int(places) for _, places in moved) > 0
    assert {rank for rank, _ in moved} == {"0", "1"}


def assert_each_expert_is_the_same_everywhere(engine: Engine, parts: int) -> None:
    """By the hashes that `hash_experts_that_move` printed: on all ranks, in all places, before and after each move.

    parts: tensors of an expert, such as weights and scales.
    """
    found = [Hashed(*match) for match in HASHED.findall(engine.log.read_text())]
    hashes: dict[tuple[str, str], set[str]] = {}
    for one in found:
        hashes.setdefault((one.layer, one.expert), set()).add(one.digest)
    assert {len(of_expert) for of_expert in hashes.values()} == {1}
    assert len({*map(frozenset, hashes.values())}) == len(hashes) == SIZES.layers * SIZES.experts
    assert {one.parts for one in found} == {str(parts)}
    assert {(one.when, one.rank) for one in found} == {(when, rank) for when in ("before", "after") for rank in "01"}


def assert_equal(outcomes, prompts: list[list[int]]) -> None:
    assert [outcome.fault for outcome in outcomes if outcome.fault] == []
    assert sum(outcome.equal_tokens for outcome in outcomes) == len(prompts) * NEW_TOKENS
