"""What indexers of sparse attention are given of a batch. Hook of `npu_hooks`; no NPU has run this."""

from collections.abc import Callable
from typing import Any

from sglang_ascend_moe.serving.options import options_of
from sglang_ascend_moe.serving.sglang_release import reaches

KEPT = "npu_indexer_sin_cos_cache"
"""What SGLang calls the angles of a batch, which all layers of a forward pass share."""


def index(
    original: Callable[..., Any],
    indexer: Any,
    x: Any,
    q_lora: Any,
    positions: Any,
    forward_batch: Any,
    layer_id: int,
    *arguments: Any,
    **keywords: Any,
) -> Any:
    """Around `DSANPUIndexerMixin.forward_npu`: the first layer of a forward pass makes the angles of its positions, and
    a block table has a page.

    SGLang keeps the angles with the batch. A graph whose warm-ups had the same batch would turn by theirs at every
    replay, and so would later steps of a draft by those of the first.
    """
    from sglang.srt.model_executor.forward_context import get_attn_backend, get_token_to_kv_pool
    from sglang.srt.runtime_context import get_server_args

    if options_of(get_server_args()) is not None:
        if layer_id == _first_indexing(get_token_to_kv_pool()) and hasattr(forward_batch, KEPT):
            delattr(forward_batch, KEPT)
        give_a_page(get_attn_backend().forward_metadata)
    return original(indexer, x, q_lora, positions, forward_batch, layer_id, *arguments, **keywords)


def _first_indexing(pool: Any) -> int:
    """The first layer with an indexer; before SGLang 0.5.21, with which no stages are served, the model's first."""
    return int(pool.indexer_layer_ids[0]) if reaches("0.5.21") else int(pool.start_layer)


def give_a_page(metadata: Any) -> None:
    """The page of padding to a block table without columns, which operators of sparse attention do not take.

    With data-parallel attention a rank without requests pads its rows to those of the others; none of them has a key.
    """
    table = metadata.block_tables
    if table is not None and len(table) and not table.shape[1]:
        metadata.block_tables = table.new_zeros(len(table), 1)
