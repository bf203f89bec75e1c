"""Exit codes of `ascend-moe` and its subcommands, and of servers that refuse what was asked."""

# docs/codes.md is written from the texts below each.

OK = 0
"""Well; also a server that was stopped by Ctrl-C or SIGTERM."""
CHECK_FAILED = 1
"""A check failed, or a server ended because one of its processes did."""
# Also what argparse exits with.
WRONG_USAGE = 2
"""Wrong usage: one line says what to change."""
CANNOT = 3
"""This machine cannot do it: memory, software, device."""
# What shells say of a program that SIGINT ended.
INTERRUPTED = 130
"""Interrupted by Ctrl-C."""
