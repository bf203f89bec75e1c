"""What SGLang says of batches whose rows it gathers from several groups of attention.

Before 0.5.20 it is asked with the server's arguments.
"""

from typing import Any

from sglang_ascend_moe.serving.sglang_release import reaches


def mlps_gather() -> bool:
    """Whether an MLP takes the rows of all groups, so that they replay graphs of one size."""
    from sglang.srt.utils import require_mlp_tp_gather

    return bool(require_mlp_tp_gather(*_asked_with()))


def batch_multiple() -> int:
    """What sizes of captured batches are multiples of."""
    from sglang.srt.utils import get_cuda_graph_batch_size_alignment

    return int(get_cuda_graph_batch_size_alignment(*_asked_with()))


def _asked_with() -> tuple[Any, ...]:
    if reaches("0.5.20"):
        return ()
    from sglang.srt.runtime_context import get_server_args

    return (get_server_args(),)
