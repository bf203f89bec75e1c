"""What SGLang's recorder of expert distributions needs on a machine without accelerator: a hook of `host_hooks`."""

from collections.abc import Callable
from typing import Any


def only_while_recording(original: Callable[..., None], recorder: Any, hook_name: str, **kwargs: Any) -> None:
    """Around `_on_hook` of the recorder: nothing to do while it does not record, and no graph that captures."""
    if recorder.recording:
        original(recorder, hook_name, **kwargs)
