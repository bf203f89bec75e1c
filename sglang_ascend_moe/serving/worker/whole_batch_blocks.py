"""MoE blocks of models that know tensor parallelism only: every rank has the rows of the whole batch.

Each rank exchanges a share of the rows, and all get the results of all; shared experts stay split over the ranks. Hooks
of `worker_hooks`.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.serving.worker import layer


def tell_hunyuans_experts(_result: None, block: Any, *_: Any, **__: Any) -> None:
    """After `HunYuanSparseMoeBlock.__init__`: its experts know how many of them a token has."""
    block.experts.top_k = block.topk.topk_config.top_k


def run_hunyuan(original: Callable[..., Tensor], block: Any, hidden_states: Tensor) -> Tensor:
    """Around `HunYuanSparseMoeBlock.forward`; hidden_states [tokens, hidden], the same on all ranks, as is the result.

    Raises `Unsupported` with data-parallel attention, which the model does not know.
    """
    if layer.serving() is None:
        return original(block, hidden_states)
    from sglang.srt.distributed import tensor_model_parallel_all_gather, tensor_model_parallel_all_reduce
    from sglang.srt.runtime_context import get_parallel

    parallel = get_parallel()
    if parallel.attn_tp_size != parallel.tp_size:
        raise Unsupported("Hunyuan's MoE blocks take the same rows on every rank; leave --enable-dp-attention out")
    rows = hidden_states.view(-1, hidden_states.shape[-1])
    share = -(-len(rows) // parallel.tp_size)
    own = rows[parallel.tp_rank * share :][:share]
    if len(own):
        logits, _ = block.gate(own)
        routing = block.topk(own, logits)
    else:
        routing = block.topk.empty_topk_output(own.device)
    routed = block.experts(own, routing)
    padded = F.pad(routed, (0, 0, 0, share - len(own)))
    results = tensor_model_parallel_all_gather(padded, dim=0)[: len(rows)]
    if block.shared_mlp is not None:
        results = results + tensor_model_parallel_all_reduce(block.shared_mlp(rows))
    return results.view(hidden_states.shape)
