"""Before SGLang 0.5.21: an update of a graph waits for the replay before it, as in later releases.

An update records an event for every attention of the graph; the replay waits for each and resets it. An update that
overtakes the replay before it records events that are set already, and its own replay waits for ever. SGLang happens to
wait where it copies the requests' lengths from the NPU, but there are none on a rank without requests
(`--enable-dp-attention`). A hook: see `runner_hooks`. No NPU has run it.
"""

from collections.abc import Callable
from typing import Any


def update_after_replay(original: Callable[..., Any], backend: Any, *arguments: Any, **named: Any) -> Any:
    """Around `NPUCudaGraphBackend.replay_with_input_update`; the fence has the name that it has in later releases."""
    fence = getattr(backend, "_rebind_fence", None)
    if fence is not None:
        fence.synchronize()
    outputs = original(backend, *arguments, **named)
    fence = backend._device_module.Event()
    fence.record()
    backend._rebind_fence = fence
    return outputs
