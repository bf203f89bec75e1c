"""What a model adds to the output of an MoE layer for the rows of a whole batch, such as features of images.

A hook of `worker_hooks`. Between MoE layers each rank that shares its attention with others holds a share of the rows.
"""

from collections.abc import Callable
from typing import Any

import torch


def add_own_rows(original: Callable[..., Any], hidden_states: Any, forward_batch: Any, extra: torch.Tensor) -> Any:
    """Around `residual.batch.add_to_output`; extra: one row for each of the batch's."""
    from sglang.srt.runtime_context import get_parallel

    if isinstance(hidden_states, torch.Tensor) and len(hidden_states) != len(extra):
        parallel = get_parallel()
        extra = extra.tensor_split(parallel.attn_tp_size)[parallel.attn_tp_rank]
    return original(hidden_states, forward_batch, extra)
