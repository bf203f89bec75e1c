"""What SGLang before 0.5.22 asks of a platform of others, and later ones find out for themselves."""

from typing import Any


class EarlierPlatform:
    """A base of the host's platform; later releases call none of its methods."""

    def support_cuda_graph(self) -> bool:
        return True

    def get_mha_kv_pool_cls(self) -> type:
        from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

        return MHATokenToKVPool

    def get_paged_allocator_cls(self) -> Any:
        return _single_tokens


def _single_tokens(size: int, *, page_size: int, **keywords: Any) -> Any:  # noqa: ARG001 - refused but 1
    """What gives keys and values their places. That for pages of several tokens is a Triton kernel there."""
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator

    return TokenToKVPoolAllocator(size, **keywords)


def runs_no_triton(*_: str) -> bool:
    """In place of `support_triton`, which tells backends of attention that need none by their names."""
    return False
