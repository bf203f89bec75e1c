"""Settings of SGLang's own ways to exchange tokens: `--ascend-moe` takes their place, and they may stand beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from sglang_ascend_moe.serving.options import FLAGS, Options, Schedule

A2A_BACKEND = "ascend_fuseep"
"""The `--moe-a2a-backend` for which SGLang's models give an MoE layer scattered rows and expect complete ones."""

REPLACED_BACKENDS = ("none", "deepep", A2A_BACKEND)
SCHEDULES: Mapping[str, Schedule] = {"normal": "prefill", "low_latency": "decode"}
"""Mode of DeepEP -> the schedule that does for every batch what DeepEP would."""


def with_schedule(settings: Any, options: Options) -> Options:
    """The options with the schedule that `--deepep-mode` asks for, if they leave it to the server.

    settings: by the names that SGLang's server arguments have.
    """
    if options.schedule != "auto" or settings.deepep_mode not in SCHEDULES:
        return options
    return msgspec.structs.replace(options, schedule=SCHEDULES[settings.deepep_mode])


def replaced(settings: Any, options: Options) -> str:
    """What takes the place of which settings, in one line; empty if none is given. options: of `with_schedule`."""
    given = [f"--moe-a2a-backend {settings.moe_a2a_backend}"] if settings.moe_a2a_backend not in (None, "none") else []
    if settings.deepep_mode in SCHEDULES:
        given.append(f"--deepep-mode {settings.deepep_mode}")
    if not given:
        return ""
    return f"--ascend-moe takes the place of {' and '.join(given)}, with {FLAGS['schedule'].flag} {options.schedule}"
