"""Collectives of SGLang's own layers inside a tape: what they give is what the original gives."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.runners import host_decode
from sglang_ascend_moe.graph_capture.tape import record
from tests.exchange.conftest import pools  # noqa: F401 - the fixture
from tests.exchange.pool import Rank


def gathered_by(group, part: torch.Tensor, dim: int) -> torch.Tensor:
    """What `GroupCoordinator.all_gather` gives."""
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(group.world_size)]
    dist.all_gather(parts, part.contiguous(), group=group.device_group)
    return torch.cat(parts, dim)


def replay_collectives(rank: Rank, dim: int, turned: bool) -> list[bool]:
    """Whether each replay, on other values, gives the sum and the parts of all ranks."""
    group = SimpleNamespace(world_size=rank.size, device_group=rank.group)
    x = torch.zeros(3, 4, dtype=torch.bfloat16)

    def step():
        part = (x + 1).t() if turned else x + 1
        summed = host_decode.all_reduce(None, group, part + 0.5)
        return {"summed": summed * 2, "gathered": host_decode.all_gather(gathered_by, group, part, dim) * 2}

    def wanted():
        part = (x + 1).t() if turned else x + 1
        summed = part + 0.5
        dist.all_reduce(summed, group=rank.group)
        return {"summed": summed * 2, "gathered": gathered_by(group, part, dim) * 2}

    equal = []
    with torch.inference_mode():
        tape = record(step, Arena())
        for seed in range(3):
            x.normal_(generator=torch.Generator().manual_seed(10 * seed + rank.rank))
            found = {name: value.clone() for name, value in tape.replay().items()}
            equal += [torch.equal(found[name], value) for name, value in wanted().items()]
    return equal


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_replayed_collectives_give_what_the_original_gives(pools, dim, turned):  # noqa: F811
    assert pools.run(2, replay_collectives, dim, turned) == [[True] * 6] * 2
