"""The positions that indexers of sparse attention are given. Hook of `npu_hooks`; no NPU has run this."""

from collections.abc import Callable
from typing import Any

from sglang_ascend_moe.serving.options import options_of

KEPT = "npu_indexer_sin_cos_cache"
"""What SGLang calls the angles of a batch, which all layers of a forward pass share."""


def forget_other_passes(
    original: Callable[..., Any],
    indexer: Any,
    x: Any,
    q_lora: Any,
    positions: Any,
    forward_batch: Any,
    layer_id: int,
    input_on_attn_tp_slices: bool = False,
    dynamic_scale: Any = None,
) -> Any:
    """Around `DSANPUIndexerMixin.forward_npu`: the first layer of a forward pass makes the angles of its positions.

    SGLang keeps them with the batch. A graph whose warm-ups had the same batch would turn by theirs at every replay,
    and so would later steps of a draft by those of the first.
    """
    from sglang.srt.model_executor.forward_context import get_token_to_kv_pool
    from sglang.srt.runtime_context import get_server_args

    first = layer_id == get_token_to_kv_pool().indexer_layer_ids[0]
    if first and hasattr(forward_batch, KEPT) and options_of(get_server_args()) is not None:
        delattr(forward_batch, KEPT)
    return original(indexer, x, q_lora, positions, forward_batch, layer_id, input_on_attn_tp_slices, dynamic_scale)
