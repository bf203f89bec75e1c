"""`ascend-moe monitoring`: writes a dashboard for Grafana, and alert rules and a configuration for Prometheus.

`prometheus --config.file=FOLDER/prometheus.yml` watches a server on this machine that was started with
`--enable-metrics`; name others in that file. Import dashboard.json into Grafana. A Prometheus that runs already loads
alerts.yml by its rule_files.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE

FILES = ("alerts.yml", "dashboard.json", "prometheus.yml")


def main(arguments: list[str]) -> int:
    """Write the files and print their paths. Returns 2 for a folder that has one of them or cannot be written."""
    parser = Parser(prog="ascend-moe monitoring", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made if it is not there")
    folder: Path = parser.parse_args(arguments).folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            with (folder / name).open("x") as written:
                written.write((files(__package__) / name).read_text())
            print(folder / name)
    except OSError as error:
        print(f"ascend-moe monitoring: {error.filename}: {error.strerror}; give another folder", file=sys.stderr)
        return WRONG_USAGE
    return OK
