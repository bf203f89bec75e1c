"""DeepEP's events. A call of the host has been done when it returns, so that they have nothing left to wait for."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import torch

from sglang_ascend_moe.errors import InvalidInput


class EventHandle:
    """Something that has happened already."""

    def current_stream_wait(self) -> None:
        """Returns at once."""


class EventOverlap:
    """What an asynchronous call hands back; also a context that waits when it is left."""

    def __init__(
        self, event: EventHandle | None = None, extra_tensors: tuple[torch.Tensor | None, ...] | None = None
    ) -> None:
        """`extra_tensors` are kept alive as long as this object."""
        self.event = event
        self.extra_tensors = extra_tensors
        self._hook_after_wait: Callable[[], None] | None = None
        self._release_handle = False

    def current_stream_wait(self, release_handle: bool = False) -> None:
        """Waits for the event, then runs the hook that was registered, once."""
        if self.event is None:
            raise InvalidInput("this EventOverlap has no event: it was released, or never given one")
        self.event.current_stream_wait()
        hook, self._hook_after_wait = self._hook_after_wait, None
        if hook is not None:
            hook()
        if release_handle:
            self.event = None

    def register_hook_after_wait(self, hook_after_wait: Callable[[], None]) -> None:
        """Runs `hook_after_wait` after the next wait."""
        if self._hook_after_wait is not None:
            raise InvalidInput("this EventOverlap has a hook already")
        self._hook_after_wait = hook_after_wait

    def __call__(self, release_handle: bool = False) -> EventOverlap:
        """`with event(release_handle=True)` gives up the event after the wait."""
        self._release_handle = release_handle
        return self

    def __enter__(self) -> EventOverlap:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.event is not None:
            self.current_stream_wait(release_handle=self._release_handle)
        self._release_handle = False
