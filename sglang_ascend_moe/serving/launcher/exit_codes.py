"""Exit codes of `ascend-moe` and its subcommands, and of servers that refuse what was asked."""

OK = 0
CHECK_FAILED = 1
# Also what argparse exits with.
WRONG_USAGE = 2
CANNOT = 3
# What shells say of a program that SIGINT ended.
INTERRUPTED = 130
