"""Settings of DeepEP may stand beside `--ascend-moe`: their place is taken, and the server says so in one line."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from sglang_ascend_moe.serving import hooks, options
from sglang_ascend_moe.serving.launcher import arguments, given_flags, replaced_settings
from sglang_ascend_moe.serving.launcher.command_line import mark
from sglang_ascend_moe.serving.options import Options

# Flags -> the schedule that comes of them, and what is said to be replaced.
BESIDE = {
    "": ("auto", ""),
    "--moe-a2a-backend none --deepep-mode auto": ("auto", ""),
    "--moe-a2a-backend deepep": ("auto", "--moe-a2a-backend deepep"),
    "--moe-a2a-backend ascend_fuseep": ("auto", "--moe-a2a-backend ascend_fuseep"),
    "--deepep-mode normal": ("prefill", "--deepep-mode normal"),
    "--moe-a2a-backend deepep --deepep-mode low_latency": (
        "decode",
        "--moe-a2a-backend deepep and --deepep-mode low_latency",
    ),
    "--deepep-mode normal --ascend-moe-schedule collective": ("collective", "--deepep-mode normal"),
}


@pytest.mark.parametrize(("words", "expected"), BESIDE.items(), ids=lambda value: value or "none" if value else None)
def test_a_command_line_gets_the_schedule_that_the_mode_asks_for(words: str, expected: tuple[str, str]):
    schedule, named = expected
    given = given_flags.read([*words.split(), options.ASK_FLAG])
    assert given.options is not None
    assert given.options.schedule == schedule
    line = replaced_settings.replaced(given.settings, given.options)
    assert line == (f"--ascend-moe takes the place of {named}, with --ascend-moe-schedule {schedule}" if named else "")


def test_a_server_says_what_is_replaced_and_its_ranks_get_the_schedule(monkeypatch, caplog: pytest.LogCaptureFixture):
    from sglang.srt.server_args import ServerArgs

    monkeypatch.setattr(hooks, "require_all", lambda: None)
    for check in ("refuse_machine", "refuse_attention", "refuse_model"):
        monkeypatch.setattr(arguments, check, lambda *_: None)
    server_args: Any = ServerArgs(model_path="dummy", device="cpu", moe_a2a_backend="deepep", deepep_mode="low_latency")
    options.attach(server_args, Options())
    mark(server_args)
    with caplog.at_level(logging.INFO):
        arguments.resolve_once(lambda _: None, server_args)
    asked = options.options_of(server_args)
    assert asked is not None
    assert asked.schedule == "decode"
    said = "--ascend-moe takes the place of --moe-a2a-backend deepep and --deepep-mode low_latency, with"
    assert [message.startswith(said) for message in caplog.messages] == [True]
