"""What `ascend-moe disagg up` tells while it runs: a line for people, or a JSON object for scripts, per event."""

from __future__ import annotations

import enum
import sys
from typing import TextIO

import msgspec


class Failure(enum.StrEnum):
    """Why a deployment ends; docs/codes.md is written from here."""

    SERVER_ENDED = "SERVER_ENDED"
    """A server ended."""
    PORT_TAKEN = "PORT_TAKEN"
    """A server ended because another program listens at its port."""
    NOT_READY = "NOT_READY"
    """A server was not ready in time."""
    NOT_DESCRIBED = "NOT_DESCRIBED"
    """An instance does not say what it is."""
    DO_NOT_FIT = "DO_NOT_FIT"
    """A prefill and a decode instance do not fit."""
    NO_TOKEN = "NO_TOKEN"
    """No token came through the router in time."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag=str.lower):
    """Base of all events; the key `event` holds the name in lower case."""


class Starting(Event, frozen=True, kw_only=True):
    """A server was started. `name`: role and number. `log`: where its output goes."""

    name: str
    url: str
    pid: int
    log: str

    def text(self) -> str:
        return f"{self.name:<10} starting at {self.url}, log {self.log}"


class Waiting(Event, frozen=True, kw_only=True):
    """A server has come to the next step of its start. `seconds` since it was started."""

    name: str
    seconds: float
    stage: str

    def text(self) -> str:
        return f"{self.name:<10} {self.seconds:4.0f} s  {self.stage}"


class Ready(Event, frozen=True, kw_only=True):
    """A server answers."""

    name: str
    seconds: float

    def text(self) -> str:
        return f"{self.name:<10} {self.seconds:4.0f} s  ready"


class Serving(Event, frozen=True, kw_only=True):
    """A token came through the router: clients use `url`. The other addresses are those of the instances."""

    url: str
    prefill: list[str]
    decode: list[str]

    def text(self) -> str:
        return (
            f"\nserving at {self.url}\n  prefill {', '.join(self.prefill)}\n  decode  {', '.join(self.decode)}\n"
            "Ctrl-C stops everything."
        )


class Failed(Event, frozen=True, kw_only=True):
    """The deployment ends because of `name`: `code` and `why`, and the end of its log (empty if that says nothing)."""

    name: str
    code: Failure
    why: str
    log: str
    log_tail: str

    def text(self) -> str:
        tail = f"\nThe end of {self.log}:\n{self.log_tail}\n" if self.log_tail else ""
        return f"\n{self.name}: {self.why}. Everything is stopped.{tail}"


class Stopped(Event, frozen=True, kw_only=True):
    """A server has ended. `by_itself`: it did not have to be killed."""

    name: str
    by_itself: bool

    def text(self) -> str:
        return f"{self.name:<10} stopped{'' if self.by_itself else ', had to be killed'}"


AnyEvent = Starting | Waiting | Ready | Serving | Failed | Stopped


class Teller:
    """Writes events, one per line as JSON or as text, and at once."""

    def __init__(self, *, as_json: bool, to: TextIO | None = None) -> None:
        self._as_json = as_json
        self._to = to or sys.stdout

    def __call__(self, event: AnyEvent) -> None:
        text = msgspec.json.encode(event).decode() if self._as_json else event.text()
        print(text, file=self._to, flush=True)
