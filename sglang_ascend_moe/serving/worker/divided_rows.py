"""Rows of a batch whose texts are divided among context-parallel ranks."""

from typing import Any

from sglang_ascend_moe.serving.worker import layer


def gather_own_part(_result: None, forward_batch: Any) -> None:
    """After `prepare_cp_forward`: tensor-parallel ranks gather the rows of their part of the texts.

    SGLang has made room for those of all parts, which no gather fills.
    """
    from sglang.srt.layers.dp_attention import set_local_dp_buffer_len
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    if layer.serving() is not None and parallel.attn_tp_size > 1:
        set_local_dp_buffer_len(forward_batch.attn_cp_metadata.per_rank_actual_token[parallel.attn_cp_rank])
