"""Decode steps in device graphs: what may be captured, and what captures it.

`check` is usable alone: it runs a step and refuses what a graph could not replay.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang_ascend_moe.graph_capture.guard import check

__all__ = ["check"]


def __getattr__(name: str) -> Any:
    """`check` needs torch, which the arithmetic of this package does without."""
    if name == "check":
        from sglang_ascend_moe.graph_capture.guard import check

        return check
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
