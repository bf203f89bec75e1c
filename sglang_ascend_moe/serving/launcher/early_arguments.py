"""Server arguments that SGLang resolves while it makes them, as releases before `early_resolution.UNTIL` do.

What is asked of this package has to ride on them before, and so it is said around the making. Functions whose
description begins with Around or In place of are hooks: see `launcher_hooks`.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sglang_ascend_moe.serving import options
from sglang_ascend_moe.serving.launcher import arguments

_attach: ContextVar[Callable[[Any], None] | None] = ContextVar("attach", default=None)


def make_from_flags(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """Around `ServerArgs.from_cli_args`: the parsed flags ride on the server arguments."""
    with _attached_by(lambda server_args: arguments.attach_parsed_options(server_args, cls, args)):
        return original(cls, args)


def engine_server_args(**keywords: Any) -> Any:
    """In place of `ServerArgs(...)` in `sglang.Engine`: accepts the `ascend_moe*` keyword arguments."""
    from sglang.srt.server_args import ServerArgs

    asked = arguments.take_engine_options(keywords)
    if asked is None:
        return ServerArgs(**keywords)
    with _attached_by(lambda server_args: options.attach(server_args, asked)):
        return ServerArgs(**keywords)


def resolve(original: Callable[[Any], None], server_args: Any) -> None:
    """Around `ServerArgs._run_resolution_pipeline`, which ends the making of the server arguments."""
    if (attach := _attach.get()) is not None:
        attach(server_args)
    arguments.resolve_once(original, server_args)


@contextmanager
def _attached_by(attach: Callable[[Any], None]) -> Iterator[None]:
    """Server arguments that are made inside get their options by `attach`."""
    before = _attach.set(attach)
    try:
        yield
    finally:
        _attach.reset(before)
