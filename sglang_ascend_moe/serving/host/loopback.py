"""Ranks of one host meet on its loopback interface, where nobody else is.

torch's own store listens on every interface, whatever address it is given, and gloo on that of the host's name.
"""

import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

SCHEME = "ascend-moe-loopback"
ADDRESS = "127.0.0.1"
_WAITING_CALLERS = 1024


def address_to_meet(port: int) -> str:
    """What `torch.distributed.init_process_group` takes as `init_method`."""
    from torch.distributed.rendezvous import _rendezvous_handlers, register_rendezvous_handler

    if SCHEME not in _rendezvous_handlers:
        register_rendezvous_handler(SCHEME, _meet)
    return f"{SCHEME}://{ADDRESS}:{port}"


def _meet(url: str, timeout: timedelta = timedelta(minutes=5), **_: Any) -> Iterator[tuple[Any, int, int]]:
    from torch.distributed import TCPStore

    asked = urlsplit(url)
    values = parse_qs(asked.query)
    rank, ranks = int(values["rank"][0]), int(values["world_size"][0])
    listener = {"master_listen_fd": _listen(asked.port or 0)} if rank == 0 else {}
    store = TCPStore(
        host_name=ADDRESS, port=asked.port, world_size=ranks, is_master=rank == 0, timeout=timeout, **listener
    )
    yield store, rank, ranks


def _listen(port: int) -> int:
    """Descriptor of a listening socket, which the store will own."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((ADDRESS, port))
    listener.listen(_WAITING_CALLERS)
    return listener.detach()
