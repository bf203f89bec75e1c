"""Block tables of ranks without requests. Hook of `npu_hooks`; no NPU has run this."""

from typing import Any

from sglang_ascend_moe.serving.options import options_of


def with_a_page(_result: None, backend: Any, *_arguments: Any, **_keywords: Any) -> None:
    """After `AscendAttnBackend.init_forward_metadata`: a table has at least one page, that of padding.

    With data-parallel attention a rank without requests pads its rows to those of the others. None of them has a key,
    and the table has no column, which operators of sparse attention do not take.
    """
    from sglang.srt.runtime_context import get_server_args

    table = backend.forward_metadata.block_tables
    if table is not None and len(table) and not table.shape[1] and options_of(get_server_args()) is not None:
        backend.forward_metadata.block_tables = table.new_zeros(len(table), 1)
