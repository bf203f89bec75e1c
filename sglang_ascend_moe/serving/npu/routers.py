"""How routers choose experts on an NPU. Hooks of `npu_hooks`; no NPU has run this."""

from collections.abc import Callable
from typing import Any

from sglang_ascend_moe.serving.options import options_of


def score_by_sigmoid(_result: None, topk: Any, *_arguments: Any, **_keywords: Any) -> None:
    """After `TopK.__init__`: the scores of a grouped router with a correction bias are sigmoids.

    So they are everywhere in SGLang but on an NPU, where a model that names no function, as GLM4-MoE, gets softmax.
    """
    config = topk.topk_config
    biased = config.use_grouped_topk and config.correction_bias is not None
    if biased and config.scoring_func == "softmax" and _asked_for():
        config.scoring_func = "sigmoid"


def choose_groups_by_their_best(
    original: Callable[..., Any],
    hidden_states: Any,
    router_logits: Any,
    topk_config: Any,
    num_token_non_padded: Any = None,
    expert_location_dispatch_info: Any = None,
    layer_id: int | None = None,
) -> Any:
    """Around `fused_topk_npu`: a grouped router without a bias, as DeepSeek-V2's, prefers groups by their best expert.

    So they do everywhere in SGLang but on an NPU that is told of padding, whose operator adds up the two best.
    """
    grouped = topk_config.use_grouped_topk and topk_config.correction_bias is None
    if not grouped or topk_config.scoring_func != "softmax" or not _asked_for():
        return original(
            hidden_states, router_logits, topk_config, num_token_non_padded, expert_location_dispatch_info, layer_id
        )
    from sglang.srt.layers.moe.topk import select_experts

    return select_experts(
        hidden_states,
        router_logits,
        topk_config,
        layer_id=layer_id,
        num_token_non_padded=num_token_non_padded,
        expert_location_dispatch_info=expert_location_dispatch_info,
    )


def _asked_for() -> bool:
    from sglang.srt.runtime_context import get_server_args

    return options_of(get_server_args()) is not None
