"""`ascend-moe disagg`: prefill and decode on different servers."""

from sglang_ascend_moe.launch.disagg import deployment_check, render, up
from sglang_ascend_moe.launch.parser import Parser


def main(arguments: list[str]) -> int:
    """Run a subcommand and return its exit code."""
    parser = Parser(
        prog="ascend-moe disagg",
        description="Prefill and decode on different servers, with a router in front.",
        more="; SGLang's own flags go into `options` of a role of --file",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    up.add_parser(commands)
    deployment_check.add_parser(commands)
    render.add_parser(commands)
    parsed = parser.parse_args(arguments)
    return int(parsed.run(parsed))
