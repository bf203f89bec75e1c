"""Exit codes of `ascend-moe` and its subcommands."""

from sglang_ascend_moe.exit_codes import CANNOT, CHECK_FAILED, INTERRUPTED, OK, WRONG_USAGE

__all__ = ["CANNOT", "CHECK_FAILED", "INTERRUPTED", "OK", "WRONG_USAGE"]
