"""`ascend-moe disagg`: prefill and decode on different servers."""

import argparse

from sglang_ascend_moe.launch.disagg import check, render, up


def main(arguments: list[str]) -> int:
    """Run a subcommand and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="ascend-moe disagg", description="Prefill and decode on different servers, with a router in front."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    up.add_parser(commands)
    check.add_parser(commands)
    render.add_parser(commands)
    parsed, unknown = parser.parse_known_args(arguments, argparse.Namespace(command_line=["disagg", *arguments]))
    if unknown:
        parser.error(
            f"unrecognized arguments: {' '.join(unknown)}; `ascend-moe disagg {arguments[0]} --help` lists all,"
            " and SGLang's own flags go into `options` of a role of --file"
        )
    return parsed.run(parsed)
