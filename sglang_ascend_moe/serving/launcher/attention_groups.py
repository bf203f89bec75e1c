"""Groups of data-parallel attention, which releases of SGLang say in different ways.

From 0.5.22 on there is a size of their own (`attn_dp_size`), to which `--dp-size N --enable-dp-attention` is resolved.
"""

from typing import Any


def attention_groups(settings: Any) -> int:
    """How many groups of ranks have attention of their own, each with its part of requests and tokens.

    settings: by the names that SGLang's server arguments have, resolved or as they were given.
    """
    groups: int = getattr(settings, "attn_dp_size", 1)
    return max(groups, settings.dp_size) if settings.enable_dp_attention else groups


def model_replicas(settings: Any) -> int:
    """How many copies of the model serve side by side, with ranks of their own; settings as above."""
    replicas: int = settings.dp_size
    return 1 if attention_groups(settings) > 1 else replicas


def data_parallel_ranks(parallel: Any) -> int:
    """Groups of all copies together, which requests are divided among; parallel: SGLang's `get_parallel()`."""
    ranks: int = getattr(parallel, "num_dp_ranks", None) or parallel.dp_size
    return ranks
