"""Exit codes of `ascend-moe` and its subcommands."""

OK = 0
CHECK_FAILED = 1
# Also what argparse exits with.
WRONG_USAGE = 2
CANNOT = 3
