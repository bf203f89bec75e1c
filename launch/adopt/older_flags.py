"""Flags that SGLang had from 0.5.18 on, and no longer has in the version that is served: their names there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Newer(NamedTuple):
    """What a flag is called now. value: what it is given there, if the old flag had no value. values: those with
    another name."""

    flag: str
    value: str | None = None
    values: Mapping[str, str] = {}


_CP_STRATEGY = Newer("--cp-strategy", values={"in-seq-split": "zigzag", "round-robin-split": "interleave"})
_PREFILL_BACKEND = "--cuda-graph-backend-prefill"

RENAMED: Mapping[str, Newer] = {
    "--cuda-graph-bs": Newer("--cuda-graph-bs-decode"),
    "--cuda-graph-max-bs": Newer("--cuda-graph-max-bs-decode"),
    "--disable-piecewise-cuda-graph": Newer(_PREFILL_BACKEND, "disabled"),
    "--dsa-prefill-cp-mode": _CP_STRATEGY,
    "--elastic-ep-rejoin": Newer("--elastic-ep-join-mode", "recover"),
    "--enable-breakable-cuda-graph": Newer(_PREFILL_BACKEND, "breakable"),
    "--enable-dsa-prefill-context-parallel": Newer("--enable-prefill-cp"),
    "--enable-gdn-replayssm-spec": Newer("--enable-linear-replayssm-spec"),
    "--enable-nsa-prefill-context-parallel": Newer("--enable-prefill-cp"),
    "--enable-prefill-context-parallel": Newer("--enable-prefill-cp"),
    "--keep-mm-feature-on-device": Newer("--mm-feature-transport", "cuda_ipc"),
    "--mamba-scheduler-strategy": Newer("--mamba-radix-cache-strategy"),
    "--nsa-decode-backend": Newer("--dsa-decode-backend"),
    "--nsa-prefill-backend": Newer("--dsa-prefill-backend"),
    "--nsa-prefill-cp-mode": _CP_STRATEGY,
    "--piecewise-cuda-graph-max-tokens": Newer("--cuda-graph-max-bs-prefill"),
    "--piecewise-cuda-graph-tokens": Newer("--cuda-graph-bs-prefill"),
    "--prefill-cp-mode": _CP_STRATEGY,
    "--speculative-dflash-draft-window-size": Newer("--speculative-draft-window-size"),
    "--stream-output": Newer("--incremental-streaming-output"),
}

REMOVED: Mapping[str, str] = {
    "--collect-tokens-histogram": "--enable-metrics collects them",
    "--cuda-graph-tc-compiler": "it chose a compiler of prefill graphs, which SGLang now chooses itself",
    "--enable-expert-distribution-metrics": "--expert-balancedness-report-mode reports them",
    "--enforce-piecewise-cuda-graph": "SGLang has no such graphs any more; see --cuda-graph-backend-prefill",
    "--piecewise-cuda-graph-compiler": "it chose a compiler of prefill graphs, which SGLang now chooses itself",
    "--prefill-round-robin-balance": "it had no effect any more",
    "--speculative-skip-dp-mlp-sync": "SGLang now decides it itself",
}
"""Flag -> why nothing stands in its place."""
