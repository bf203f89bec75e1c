"""`python -m tests.serving.faulty_server`: SGLang's server, in which rank 1 raises as soon as a file is there.

Or it reads another secret than the other ranks, or samples other tokens or is slow as soon as a file is there.

Spawned schedulers import it too, as `__mp_main__`, and so are damaged alike; tests that import it are not.
"""

import enum
import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from sglang_ascend_moe.serving.worker import layer

SIGN = "SERVING_TEST_RAISE"
"""Variable with the path of the file."""
MESSAGE = "the experts of rank 1 failed on purpose"

SLOW = "SERVING_TEST_SLOW"
"""Variable with the path of a file while which is there each layer of rank 1 takes SLOW_SECONDS longer."""
SLOW_SECONDS = 0.01

OTHER_SECRET = "SERVING_TEST_OTHER_SECRET"
"""Variable with the path of the secret of rank 1."""

DRIFT = "SERVING_TEST_DRIFT"
"""Variable with the path of a file that has the name of a `Drift`."""
LAST_TOKEN = 7
"""The token that `Drift.END` samples: requests have to stop at it."""


class Drift(enum.Enum):
    """What becomes of the logits of rank 1."""

    OTHER_TOKEN = "other token"
    NAN = "NaN"
    END = "end"
    HANG = "hang"


_compute_experts = layer.compute_experts
_read_secret = layer.read_secret


def compute_experts(serving, moe_layer, rows) -> None:
    raise_if_asked()
    if _is_asked(SLOW):
        threading.Event().wait(SLOW_SECONDS)
    _compute_experts(serving, moe_layer, rows)


def raise_if_asked() -> None:
    if _is_asked(SIGN):
        raise ValueError(MESSAGE)


def _is_asked(variable: str) -> bool:
    """Of this rank, by the file that the variable names."""
    from sglang.srt.runtime_context import get_parallel

    return get_parallel().moe_ep_rank == 1 and Path(os.environ.get(variable, "")).is_file()


def raise_in_replays() -> None:
    """A graph of an NPU calls no Python for its experts: this rank raises where it has put the graph on its stream."""
    replay = torch.npu.NPUGraph.replay

    def replayed(graph) -> None:
        replay(graph)
        raise_if_asked()

    torch.npu.NPUGraph.replay = replayed


def read_secret(path):
    from sglang.srt.runtime_context import get_parallel

    if DRIFT in os.environ and get_parallel().tp_rank == 1:
        damage_sampler(Path(os.environ[DRIFT]))
    return _read_secret(os.environ.get(OTHER_SECRET, path) if get_parallel().tp_rank == 1 else path)


def damage_sampler(sign: Path) -> None:
    """From when there is a file `sign`, the logits of this rank are no longer those of the others."""
    from sglang.srt.layers.sampler import Sampler

    def sampled(original: Callable, self, logits_output, *arguments, **keywords):
        if sign.is_file():
            drift(logits_output.next_token_logits, Drift(sign.read_text()))
        return original(self, logits_output, *arguments, **keywords)

    Sampler.forward = functools.partialmethod(functools.partial(sampled, Sampler.forward))


def drift(logits, kind: Drift) -> None:
    """Damage logits [requests, vocabulary] in place; or never return."""
    match kind:
        case Drift.OTHER_TOKEN:
            logits[-1, logits[-1].argmax()] = float("-inf")
        case Drift.NAN:
            logits[-1] = float("nan")
        case Drift.END:
            logits[-1] = float("-inf")
            logits[-1, LAST_TOKEN] = 0
        case Drift.HANG:
            threading.Event().wait()


if __name__ in ("__main__", "__mp_main__"):
    layer.compute_experts = compute_experts
    layer.read_secret = read_secret
    if hasattr(torch, "npu"):
        raise_in_replays()

if __name__ == "__main__":
    import sys

    from sglang_ascend_moe.launch.servers.sglang_server import serve

    sys.exit(serve(sys.argv[1:]))
