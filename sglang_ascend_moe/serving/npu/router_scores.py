"""How routers score experts on an NPU. A hook of `npu_hooks`; no NPU has run this."""

from typing import Any

from sglang_ascend_moe.serving.options import options_of


def score_by_sigmoid(_result: None, topk: Any, *_arguments: Any, **_keywords: Any) -> None:
    """After `TopK.__init__`: the scores of a grouped router with a correction bias are sigmoids.

    So they are everywhere in SGLang but on an NPU, where a model that names no function, as GLM4-MoE, gets softmax.
    """
    from sglang.srt.runtime_context import get_server_args

    config = topk.topk_config
    biased = config.use_grouped_topk and config.correction_bias is not None
    if biased and config.scoring_func == "softmax" and options_of(get_server_args()) is not None:
        config.scoring_func = "sigmoid"
