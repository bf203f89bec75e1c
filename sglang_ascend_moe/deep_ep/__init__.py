"""DeepEP's interface over relay-free windows: `from sglang_ascend_moe.deep_ep import Buffer, Config, EventOverlap`.

What each call does, what has no effect here and what is refused is in docs/deep-ep.md.
"""

import torch

from sglang_ascend_moe.deep_ep.buffer import Buffer
from sglang_ascend_moe.deep_ep.buffer_config import Config
from sglang_ascend_moe.deep_ep.events import EventHandle, EventOverlap

topk_idx_t = torch.int64
"""The dtype of expert ids, as DeepEP names it; int32 is taken as well."""

__all__ = ["Buffer", "Config", "EventHandle", "EventOverlap", "topk_idx_t"]
