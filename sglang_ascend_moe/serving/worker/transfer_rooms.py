"""Rooms, as SGLang calls what a request has in the transfer of its keys and values, change state one thread at a time.

A prefill instance opens the room of a request in its scheduler, and a thread beside it notes that the decode side is
ready. SGLang reads the state of the room first and writes it then. If both read that there is no room yet, and the
scheduler writes last, the decode instance's readiness is forgotten: the request waits until SGLang gives it up after
five minutes. Seen once in some 12,000 requests on two cores.
"""

import threading
from collections.abc import Callable
from typing import Any

# A change of state may report another one.
_one_at_a_time = threading.RLock()


def update_status(original: Callable[..., None], manager: Any, *arguments: Any, **keywords: Any) -> None:
    """Around `CommonKVManager.update_status`."""
    with _one_at_a_time:
        original(manager, *arguments, **keywords)
