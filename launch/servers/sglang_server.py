"""SGLang's server in this process, as `python -m sglang.launch_server` runs it."""

import os

from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import OK


def serve(arguments: list[str]) -> int:
    """Serve until the server is stopped. Raises SystemExit if SGLang or we refuse the arguments, or if it fails."""
    from sglang.launch_server import run_server
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    # With the hooks on it.
    from sglang.srt.utils import kill_process_tree

    try:
        run_server(prepare_server_args(arguments))
    finally:
        kill_process_tree(os.getpid(), include_parent=False)
    # SGLang heeds SIGTERM itself.
    return interrupts.told() if interrupts.command() else OK
