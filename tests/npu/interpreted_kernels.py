"""A kernel for tests/npu/test_triton_kernels.py, in a module of its own because Triton reads its source."""

import triton
import triton.language as tl


@triton.jit
def add_where_pointers_lead(table, out, added, width: tl.constexpr):
    """Row `program` of `out` is what entry `program` of the table points to, with `added` added."""
    program = tl.program_id(0)
    columns = tl.arange(0, width)
    row = tl.load(table + program).to(tl.pointer_type(tl.int64))
    tl.store(out + program * width + columns, tl.load(row + columns) + tl.load(added + columns))
