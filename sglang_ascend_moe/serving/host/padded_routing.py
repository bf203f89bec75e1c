"""Routing of batches that have padding, by SGLang's router for machines without kernels; a hook of `host_hooks`."""

from collections.abc import Callable
from typing import Any

import torch

NOT_ROUTED = -1


def route(
    original: Callable[..., Any],
    *arguments: Any,
    num_token_non_padded: torch.Tensor | None = None,
    expert_location_dispatch_info: Any = None,
    **keywords: Any,
) -> Any:
    """Around `select_experts`: its torch form knows neither padding nor places of experts, which are put in afterwards.

    num_token_non_padded: of the rows, on the device; behind them lies padding, which is not routed.
    """
    config = keywords["topk_config"]
    if config.use_grouped_topk or config.custom_routing_function is not None:
        return original(
            *arguments,
            num_token_non_padded=num_token_non_padded,
            expert_location_dispatch_info=expert_location_dispatch_info,
            **keywords,
        )
    from sglang.srt.eplb.expert_location_dispatch import topk_ids_logical_to_physical

    routed = original(*arguments, **keywords)
    ids = topk_ids_logical_to_physical(routed.topk_ids, expert_location_dispatch_info)
    if num_token_non_padded is not None:
        padding = torch.arange(len(ids), device=ids.device) >= num_token_non_padded
        ids = ids.masked_fill(padding[:, None], NOT_ROUTED)
    return routed._replace(topk_ids=ids)
