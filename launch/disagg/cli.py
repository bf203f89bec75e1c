"""`ascend-moe disagg`: prefill and decode on different servers."""

import argparse

from sglang_ascend_moe.launch.disagg import up


def main(arguments: list[str]) -> int:
    """Run a subcommand and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="ascend-moe disagg", description="Prefill and decode on different servers, with a router in front."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    up.add_parser(commands)
    parsed = parser.parse_args(arguments)
    return parsed.run(parsed)
