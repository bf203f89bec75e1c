"""Variables of an environment as `--ascend-moe` takes them: what is read by exchanges that it takes the place of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from sglang_ascend_moe.launch.adopt.changes import Change
from sglang_ascend_moe.serving.options import FLAGS

HCCL_BUFFER = "HCCL_BUFFSIZE"
INT8_ROWS = "DEEP_NORMAL_MODE_USE_INT8_QUANT"
ZBAL_MEMORY = ("SGLANG_ZBAL_LOCAL_MEM_SIZE", "ZBCCL_LOCAL_MEM_SIZE")
DISPATCH_TOKENS = "SGLANG_DEEPEP_NUM_MAX_DISPATCH_TOKENS_PER_RANK"
_TRUE = ("1", "true", "yes", "y", "on")

# The first that fits decides.
_DROPPED = (
    (DISPATCH_TOKENS, "windows have the size of the scheduler's largest batches"),
    (r"DEEPEP_NORMAL_(COMBINE_ENABLE_)?LONG_SEQ.*", "prefill takes as many rounds as its window needs"),
    (r"(SGLANG_)?ZB(AL|CCL)_.*", "zbal takes the place of the allocator, and was never tried with windows"),
    ("SGLANG_NPU_FUSED_MOE_MODE", "it chooses a fused kernel of SGLang, which is not used"),
    (r"(SGLANG_)?DEEPEP_.*", "it tunes DeepEP, which is not used"),
)


class Environment(NamedTuple):
    """variables: to set instead. flags: to give besides."""

    variables: dict[str, str]
    flags: list[str]
    changes: list[Change]


def change_environment(given: Mapping[str, str], *, quantised: bool, hccl_mb: int | None) -> Environment:
    """quantised: whether the experts take rows in int8. hccl_mb: what HCCL needs for what goes on passing through it;
    None where that is not known, and the variable stays."""
    kept: dict[str, str] = {}
    flags: list[str] = []
    changes: list[Change] = []
    for name, value in given.items():
        was = f"{name}={value}"
        why = next((why for pattern, why in _DROPPED if re.fullmatch(pattern, name)), None)
        if name == INT8_ROWS and value.lower() in _TRUE and quantised:
            flags = [FLAGS["quant"].flag, "int8"]
            changes.append(Change("translated", was, " ".join(flags), "it is the format in which rows travel"))
        elif name == INT8_ROWS:
            off = "it is off" if value.lower() not in _TRUE else "experts that are not quantised take no rows in int8"
            changes.append(Change("dropped", was, "", off))
        elif why is not None:
            changes.append(Change("dropped", was, "", why))
        elif name == HCCL_BUFFER and hccl_mb is not None and value.isdecimal() and int(value) > hccl_mb:
            kept[name] = str(hccl_mb)
            why = "the rows of experts go through windows, which are not HCCL's; this holds those of attention"
            changes.append(Change("translated", was, f"{name}={hccl_mb}", why))
        else:
            kept[name] = value
    return Environment(kept, flags, changes)
