"""`ascend-moe trace FOLDER`: the traces of all ranks as one timeline, for Perfetto (ui.perfetto.dev) or
chrome://tracing, and a summary.

Ranks write traces with --ascend-moe-trace FOLDER.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sglang_ascend_moe.errors import AscendMoeError
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.serving.launcher.exit_codes import CHECK_FAILED, OK

TIMELINE = "timeline.json"


def main(arguments: list[str]) -> int:
    """Merge traces; 1 if there are none, or they cannot be read or written."""
    parsed = _parser().parse_args(arguments)
    try:
        return _merge(parsed.folder, parsed.json or parsed.folder / TIMELINE)
    except AscendMoeError as error:
        print(f"ascend-moe trace: {error}", file=sys.stderr)
        return CHECK_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="ascend-moe trace",
        description=__doc__,
        epilog="Exit codes: 0 well, 1 there are no traces, or they cannot be read or written.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of --ascend-moe-trace")
    parser.add_argument("--json", type=Path, metavar="FILE", help=f"the timeline (default: FOLDER/{TIMELINE})")
    return parser


def _merge(folder: Path, target: Path) -> int:
    import msgspec

    from sglang_ascend_moe.errors import InvalidInput
    from sglang_ascend_moe.launch.trace.chrome_events import chrome_events
    from sglang_ascend_moe.launch.trace.timeline import read_timelines
    from sglang_ascend_moe.launch.trace.trace_summary import summary

    timelines = read_timelines(folder)
    events = list(chrome_events(timelines))
    try:
        target.write_bytes(msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ns"}))
    except OSError as error:
        raise InvalidInput(f"--json {target}: {error.strerror}; give a file in a folder that can be written") from error
    print("\n\n".join(map(summary, timelines)))
    print(f"\n{target} opens in ui.perfetto.dev and chrome://tracing")
    return OK
