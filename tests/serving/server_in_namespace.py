"""`python -m tests.serving.server_in_namespace`: SGLang's server in the network namespace that a variable names.

Spawned ranks are in the namespace of the process that starts them.
"""

import ctypes
import os
from pathlib import Path

NAMESPACE = "SERVING_TEST_NAMESPACE"
"""Variable with the name, as `ip netns` shows it; without it the server stays where it is."""
CLONE_NEWNET = 0x40000000


def enter(name: str) -> None:
    """This process is in another network from now on."""
    with (Path("/run/netns") / name).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns", name)


if __name__ == "__main__":
    import sys

    if name := os.environ.get(NAMESPACE):
        enter(name)
    from sglang_ascend_moe.launch.servers.sglang_server import serve

    sys.exit(serve(sys.argv[1:]))
