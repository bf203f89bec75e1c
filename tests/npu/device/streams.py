"""Streams and events of `torch.npu`, under the names of torch_npu."""

from __future__ import annotations

from typing import Any

import torch

from tests.npu.device.library import native


def device_index(device: Any = None) -> int:
    """The index of a device that is given as torch_npu's functions take it; None for the current one."""
    if isinstance(device, str):
        device = torch.device(device)
    if isinstance(device, torch.device):
        if device.type != "npu":
            raise ValueError(f"expected a device npu, got {device}")
        device = device.index
    return torch.accelerator.current_device_index() if device is None or device < 0 else int(device)


class Stream(torch.Stream):
    """A stream; work that is put on it runs later."""

    def __new__(cls, device: Any = None, priority: int = 0, **described: int) -> Stream:
        if described:
            return super().__new__(cls, **described)
        return super().__new__(cls, device=torch.device("npu", device_index(device)), priority=priority)

    @property
    def npu_stream(self) -> int:
        """How C functions name it."""
        return self.stream_id

    def wait_stream(self, stream: torch.Stream) -> None:
        self.wait_event(stream.record_event())

    def wait_event(self, event: Any) -> None:
        event.wait(self)

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def __repr__(self) -> str:
        return f"<stream {self.stream_id} of the emulated NPU {self.device_index}>"


class Event(torch.Event):
    """A point of a stream."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> Event:  # noqa: ARG004
        if interprocess:
            raise NotImplementedError("the emulated NPU has no events between processes")
        return super().__new__(cls, device=torch.device("npu", device_index()), enable_timing=enable_timing)

    def record(self, stream: torch.Stream | None = None) -> None:
        super().record(current_stream() if stream is None else stream)

    def wait(self, stream: torch.Stream | None = None) -> None:
        super().wait(current_stream() if stream is None else stream)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds. Torch's own takes no event of a derived class."""
        return native().milliseconds(self.event_id, end_event.event_id)


class ExternalEvent:
    """An event that stays set until a stream resets it."""

    def __init__(self) -> None:
        self._flag = native().Flag()

    def record(self, stream: Stream | None = None) -> None:
        self._flag.record((stream or current_stream()).stream_id)

    def wait(self, stream: Stream | None = None) -> None:
        self._flag.wait((stream or current_stream()).stream_id)

    def reset(self, stream: Stream | None = None) -> None:
        self._flag.reset((stream or current_stream()).stream_id)


def _as_stream(stream: torch.Stream) -> Stream:
    return Stream(stream_id=stream.stream_id, device_index=stream.device_index, device_type=stream.device_type)


def current_stream(device: Any = None) -> Stream:
    return _as_stream(torch.accelerator.current_stream(device_index(device)))


def default_stream(device: Any = None) -> Stream:
    like = torch.accelerator.current_stream(device_index(device))
    return Stream(stream_id=0, device_index=like.device_index, device_type=like.device_type)


def set_stream(stream: torch.Stream | None) -> None:
    if stream is not None:
        torch.accelerator.set_stream(stream)


class StreamContext:
    """Inside, the calling thread works on the stream; None changes nothing. It may be entered again."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream
        self._before: list[Stream] = []

    def __enter__(self) -> None:
        self._before.append(current_stream())
        set_stream(self.stream)

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        set_stream(self._before.pop())


def stream(stream: torch.Stream | None) -> StreamContext:
    return StreamContext(stream)
