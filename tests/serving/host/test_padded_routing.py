"""The torch form of a router, of SGLang up to 0.5.22: padding is not routed, and experts are where they were placed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.eplb.expert_location_dispatch import ExpertLocationDispatchInfo
from sglang.srt.layers.moe.topk import StandardTopKOutput

from sglang_ascend_moe.serving.host import fixes
from sglang_ascend_moe.serving.host.padded_routing import NOT_ROUTED, route

IDS = [[0, 1], [2, 0], [1, 2]]
TORCH_FORM = {"use_grouped_topk": False, "custom_routing_function": None}


def router(given: dict[str, Any]) -> Any:
    """In place of SGLang's, which is told what is in `given`."""

    def select(*_: Any, **keywords: Any) -> StandardTopKOutput:
        given.update(keywords)
        return StandardTopKOutput(torch.ones(3, 2), torch.tensor(IDS), torch.zeros(3, 3))

    return select


def test_padding_is_not_routed():
    rows = torch.tensor(2)
    given: dict[str, Any] = {}
    routed = route(router(given), num_token_non_padded=rows, topk_config=SimpleNamespace(**TORCH_FORM))
    assert routed.topk_ids.tolist() == [*IDS[:2], [NOT_ROUTED] * 2]
    assert "num_token_non_padded" not in given, "SGLang would refuse it"


def test_experts_are_where_they_were_placed():
    placed = torch.tensor([2, 0, 1])
    info = ExpertLocationDispatchInfo(
        ep_dispatch_algorithm="static",
        partial_logical_to_rank_dispatch_physical_map=placed,
        partial_logical_to_all_physical_map=placed[:, None],
        partial_logical_to_all_physical_map_num_valid=torch.ones(3, dtype=torch.int64),
        num_physical_experts=3,
    )
    routed = route(
        router({}),
        expert_location_dispatch_info=info,
        num_token_non_padded=torch.tensor(1),
        topk_config=SimpleNamespace(**TORCH_FORM),
    )
    assert routed.topk_ids.tolist() == [placed[IDS[0]].tolist(), [NOT_ROUTED] * 2, [NOT_ROUTED] * 2]


@pytest.mark.parametrize("other", [{"use_grouped_topk": True}, {"custom_routing_function": max}], ids=str)
def test_other_forms_are_told_all(other: dict[str, Any]):
    given: dict[str, Any] = {}
    rows = torch.tensor(2)
    routed = route(router(given), num_token_non_padded=rows, topk_config=SimpleNamespace(**TORCH_FORM | other))
    assert (routed.topk_ids.tolist(), given["num_token_non_padded"]) == (IDS, rows)


def test_a_group_makes_no_nccl_communicator_unless_its_caller_wants_one():
    assert fixes.groups_without_nccl([[0]], 0, "gloo") == (([[0]], 0, "gloo"), {"use_pynccl": False})
    assert fixes.groups_without_nccl(use_pynccl=True) == ((), {"use_pynccl": True})
