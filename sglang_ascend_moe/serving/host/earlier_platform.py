"""What SGLang before 0.5.22 asks of the host's platform. Later ones would take some of it in place of their own."""

from typing import Any


def support_cuda_graph(_platform: Any) -> bool:
    return True


def get_mha_kv_pool_cls(_platform: Any) -> type:
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    return MHATokenToKVPool


def get_mla_kv_pool_cls(_platform: Any) -> Any:
    return _latent_pool


def _latent_pool(size: int, *, index_head_dim: None = None, **keywords: Any) -> Any:  # noqa: ARG001 - hosts serve no DSA
    from sglang.srt.mem_cache.memory_pool import MLATokenToKVPool

    return MLATokenToKVPool(size, **keywords)


def get_paged_allocator_cls(_platform: Any) -> Any:
    return _single_tokens


def _single_tokens(size: int, *, page_size: int, **keywords: Any) -> Any:  # noqa: ARG001 - refused but 1
    """What gives keys and values their places. That for pages of several tokens is a Triton kernel there."""
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

    return TokenToKVPoolAllocator(size, **keywords)


def runs_no_triton(*_: str) -> bool:
    """In place of `support_triton`, which tells backends of attention that need none by their names."""
    return False
