"""Decode steps in device graphs: what may be captured, and what captures it.

`check` is usable alone: it runs a step and refuses what a graph could not replay.
"""

from sglang_ascend_moe.graph_capture.guard import check

__all__ = ["check"]
