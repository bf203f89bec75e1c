"""`python -m tests.serving.faulty_server`: SGLang's server, in which rank 1 raises as soon as a file is there.

Or it reads another secret than the other ranks.

Spawned schedulers import it too, as `__mp_main__`, and so are damaged alike; tests that import it are not.
"""

import os
from pathlib import Path

from sglang_ascend_moe.serving.worker import layer

SIGN = "SERVING_TEST_RAISE"
"""Variable with the path of the file."""
MESSAGE = "the experts of rank 1 failed on purpose"

OTHER_SECRET = "SERVING_TEST_OTHER_SECRET"
"""Variable with the path of the secret of rank 1."""

_compute_experts = layer.compute_experts
_read_secret = layer.read_secret


def compute_experts(serving, moe_layer, rows) -> None:
    from sglang.srt.runtime_context import get_parallel

    if get_parallel().moe_ep_rank == 1 and Path(os.environ.get(SIGN, "")).is_file():
        raise ValueError(MESSAGE)
    _compute_experts(serving, moe_layer, rows)


def read_secret(path):
    from sglang.srt.runtime_context import get_parallel

    return _read_secret(os.environ.get(OTHER_SECRET, path) if get_parallel().tp_rank == 1 else path)


if __name__ in ("__main__", "__mp_main__"):
    layer.compute_experts = compute_experts
    layer.read_secret = read_secret

if __name__ == "__main__":
    import sys

    from sglang_ascend_moe.launch.servers.sglang_server import serve

    sys.exit(serve(sys.argv[1:]))
