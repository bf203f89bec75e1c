"""Tokens are those of the seed, wherever they are made, and go where the name of the routing says."""

import pytest
import torch

from sglang_ascend_moe.launch.bench.cases import ROUTINGS
from sglang_ascend_moe.launch.bench.drawn_routing import make_batch, make_ids, traffic

from .shapes import case

LARGE = case(tokens=2000, experts=32, topk=4, hidden=16)


@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_batch_follows_from_seed_and_rank(routing: str):
    shape = case(routing=routing)
    for one, another in zip(make_batch(shape, 1), make_batch(shape, 1), strict=True):
        assert torch.equal(one, another)
    assert not torch.equal(make_batch(shape, 0).x, make_batch(shape, 1).x)
    assert not torch.equal(make_batch(shape, 0).x, make_batch(case(routing=routing, seed=6), 0).x)


@pytest.mark.parametrize("routing", ["uniform", "zipf"])
def test_a_token_names_an_expert_once(routing: str):
    ids = make_ids(case(tokens=500, routing=routing), 0)
    assert ids.min() >= 0
    assert ids.max() < 8
    assert all(len(set(token)) == 3 for token in ids.tolist())


def test_uniform_routing_spreads_rows_evenly():
    counts = torch.bincount(make_ids(LARGE, 0).flatten(), minlength=32)
    assert counts.sum() == 8000
    assert counts.min() > 180
    assert counts.max() < 320


def test_zipf_routing_has_the_same_popular_expert_on_every_rank():
    shape = case(tokens=2000, experts=32, topk=1, hidden=16, routing="zipf")
    counts = traffic(shape)
    assert len(set(counts.argmax(dim=1).tolist())) == 1
    # The first of 32 has a share of 1 / (1 + 1/2 + ... + 1/32), about a quarter.
    assert ((counts.amax(dim=1) > 400) & (counts.amax(dim=1) < 600)).all()


def test_one_expert_routing_sends_everything_to_one_expert():
    counts = traffic(case(routing="one-expert"))
    assert counts.sum(dim=1).tolist() == [21, 21]
    assert (counts.sum(dim=0) > 0).sum() == 1


@pytest.mark.parametrize("routing", ROUTINGS)
def test_traffic_counts_what_every_rank_sends(routing: str):
    shape = case(routing=routing)
    expected = [torch.bincount(make_batch(shape, rank).ids.flatten(), minlength=8).tolist() for rank in range(2)]
    assert traffic(shape).tolist() == expected
