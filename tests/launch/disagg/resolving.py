"""A process that has loaded the package into SGLang, and says what becomes of command lines before anything starts.

Reads a JSON list of command lines, each the arguments of `sglang.launch_server`, and prints a JSON object: their
`outcomes`, and the `flags` of the parser.
For `--device npu` only the device itself is left out: it is neither looked for nor asked for its memory.
"""

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

from sglang.srt.hardware_backend.npu import utils
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import override_platform

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.serving import hooks, options
from sglang_ascend_moe.serving.launcher import arguments
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.worker.sizing import SchedulerLimits, tokens_per_rank

# Of one die of an Ascend A3.
NPU_MEMORY_MB = 65536.0


def outcome(parser: argparse.ArgumentParser, words: list[str]) -> dict[str, Any]:
    """`refused`: the refusal, or None; else `backend` of the MoE layers and `tokens` that a rank brings to one."""
    from sglang.srt.server_args import ServerArgs

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            server_args = ServerArgs.from_cli_args(parser.parse_args(words))
            with pretended(device_of(server_args)):
                server_args.resolve_once()
    except (AscendMoeError, SystemExit) as refusal:
        return {"refused": str(refusal) if isinstance(refusal, AscendMoeError) else said.getvalue()}
    resolved = server_args.resolved_dict()
    groups = resolved["attn_dp_size"]
    limits = SchedulerLimits(
        resolved["max_running_requests"] // groups,
        resolved["chunked_prefill_size"],
        "--chunked-prefill-size",
        resolved["tp_size"] // groups,
        resolved["disaggregation_mode"],
    )
    asked = options.options_of(server_args)
    return {"refused": None, "backend": resolved["moe_a2a_backend"], "tokens": tokens_per_rank(asked, limits)}


@contextlib.contextmanager
def pretended(device: str) -> Iterator[None]:
    """For `npu` everything that needs one is as if it were there."""
    if device != "npu":
        yield
        return
    with (
        mock.patch.object(arguments, "refuse_machine"),
        mock.patch.object(hooks, "require_all"),
        mock.patch.object(hooks, "on_npu", return_value=True),
        mock.patch.object(hooks, "on_host", return_value=False),
        mock.patch.object(utils, "get_npu_memory_capacity", return_value=NPU_MEMORY_MB),
        override_platform(is_npu=True),
    ):
        yield


def main() -> None:
    load_plugins()
    from sglang.srt.server_args import ServerArgs

    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    asked = json.load(sys.stdin)
    printed = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        outcomes = [outcome(parser, words) for words in asked]
    flags = [flag for action in parser._actions for flag in action.option_strings]
    json.dump({"flags": flags, "outcomes": outcomes}, printed)


if __name__ == "__main__":
    main()
