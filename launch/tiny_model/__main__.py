"""`python -m sglang_ascend_moe.launch.tiny_model`."""

import sys

from sglang_ascend_moe.serving.launcher import interrupts


def main() -> int:
    """Run the command, which is over at the first interrupt, also while it is imported."""
    with interrupts.watched("python -m sglang_ascend_moe.launch.tiny_model"):
        from sglang_ascend_moe.launch.tiny_model import tiny_model_command

        return tiny_model_command.main(sys.argv[1:])


raise SystemExit(main())
