"""`python -m tests.serving.server_in_namespace`: SGLang's server in the network namespace that a variable names.

Spawned ranks are in the namespace of the process that starts them.
"""

import ctypes
import os
from pathlib import Path

NAMESPACE = "SERVING_TEST_NAMESPACE"
"""Variable with the name, as `ip netns` shows it; without it the server stays where it is."""
CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x20000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


def enter(name: str) -> None:
    """This process is in another network from now on, and has a /dev/shm of its own, as a container has: SGLang takes
    those who share it for processes of one loopback interface."""
    system = ctypes.CDLL(None, use_errno=True)
    with (Path("/run/netns") / name).open() as namespace:
        failed = system.setns(namespace.fileno(), CLONE_NEWNET)
    failed = failed or system.unshare(CLONE_NEWNS)
    failed = failed or system.mount(None, b"/", None, MS_REC | MS_PRIVATE, None)
    if failed or system.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "a namespace cannot be entered", name)


if __name__ == "__main__":
    import sys

    if name := os.environ.get(NAMESPACE):
        enter(name)
    from sglang_ascend_moe.launch.servers.sglang_server import serve

    sys.exit(serve(sys.argv[1:]))
