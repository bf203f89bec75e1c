"""`python -m tests.serving.faulty_server`: SGLang's server, in which a rank raises as soon as a file is there.

Spawned schedulers import it too, as `__mp_main__`, and so are damaged alike; tests that import it are not.
"""

import os
from pathlib import Path

from sglang_ascend_moe import layer

SIGN = "SERVING_TEST_RAISE"
"""Variable with the path of the file."""
MESSAGE = "the experts of rank 1 failed on purpose"

_compute_experts = layer.compute_experts


def compute_experts(moe_layer, rows) -> None:
    from sglang.srt.runtime_context import get_parallel

    if get_parallel().moe_ep_rank == 1 and Path(os.environ[SIGN]).exists():
        raise ValueError(MESSAGE)
    _compute_experts(moe_layer, rows)


if __name__ in ("__main__", "__mp_main__"):
    layer.compute_experts = compute_experts

if __name__ == "__main__":
    import sys

    from sglang_ascend_moe.launch.forked_server import serve

    serve(sys.argv[1:])
