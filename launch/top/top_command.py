"""`ascend-moe top`: what each rank of a running server does, again and again; ends with Ctrl-C.

Shares are of the time between two looks. *waits for*: the rank that held this one up longest.
"""

from __future__ import annotations

import argparse
import sys
import time

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.parser import Parser, address
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK

SHORTEST_S = 0.1


def main(arguments: list[str]) -> int:
    """Show a server until it is interrupted, or once; 1 if it does not answer, or no more."""
    parsed = _parser().parse_args(arguments)
    try:
        return _show(parsed)
    except AscendMoeError as error:
        print(f"ascend-moe top: {error}", file=sys.stderr)
        return CHECK_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ascend-moe top",
        description=__doc__,
        epilog="Exit codes: 0 well, 1 the server does not answer or has nothing to say, 130 interrupted.",
    )
    parser.add_argument(
        "--url", type=address, default="http://localhost:30000", help="the server's address (default: %(default)s)"
    )
    parser.add_argument("--api-key", metavar="KEY", help="of the server")
    parser.add_argument("--interval", type=_seconds, default=2.0, metavar="S", help="seconds between two looks (2)")
    parser.add_argument("--once", action="store_true", help="two looks, one table, and the end, as for scripts")
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not SHORTEST_S <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds of at least {SHORTEST_S}")
    return seconds


def _show(parsed: argparse.Namespace) -> int:
    from sglang_ascend_moe.launch.doctor.live_server import ask
    from sglang_ascend_moe.launch.top.rates import Look, rates_between

    def look() -> Look:
        return Look(ask(parsed.url, parsed.api_key), time.monotonic())

    before = look()
    from rich.console import Console
    from rich.live import Live

    from sglang_ascend_moe.launch.top.live_view import view

    console = Console()
    if parsed.once:
        time.sleep(parsed.interval)
        console.print(view(parsed.url, rates_between(before, look())))
        return OK
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        while True:
            time.sleep(parsed.interval)
            after = look()
            live.update(view(parsed.url, rates_between(before, after)), refresh=True)
            before = after
