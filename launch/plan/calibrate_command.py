"""`ascend-moe plan calibrate` measures this host, `plan check` holds what is then predicted against measurements."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.launch.bench.output_files import can_plot, plot_path, require_file, write_json
from sglang_ascend_moe.launch.plan.argument_types import positive
from sglang_ascend_moe.launch.plan.machine_times import read_machine
from sglang_ascend_moe.launch.plan.prediction_check import MEASURES, Compared, comparison_table, verdict
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT

DEFAULT_RANKS = (1, 2, 4)


def add_commands(commands: Any) -> None:
    """Adds `calibrate` and `check` to the parser of `plan`."""
    calibrate = commands.add_parser(
        "calibrate",
        help="measure this host for `plan schedule --machine` and `plan check`",
        description="Measures products, memory, the exchange, and servers that answer one request at a time. Nothing"
        " else should run. Exit codes: 0 well, 1 a server or a benchmark failed, 2 wrong usage.",
    )
    calibrate.set_defaults(run=run_calibrate)
    calibrate.add_argument("--json", type=Path, metavar="PATH", required=True, help="write the machine there")
    check = commands.add_parser(
        "check",
        help="predictions for this host against measurements",
        description="Serves and asks what `plan calibrate` did not ask, and compares with what is predicted. Exit"
        " codes: 0 well, 1 predictions are not good enough, or a server failed, 2 wrong usage, 3 --plot needs"
        " matplotlib.",
    )
    check.set_defaults(run=run_check)
    check.add_argument("--machine", type=Path, metavar="JSON", required=True, help="what `plan calibrate` wrote")
    check.add_argument("--json", type=Path, metavar="PATH", help="write what was compared there")
    check.add_argument("--plot", type=plot_path, metavar="PATH", help="draw it; .svg, .png or .pdf")
    for parser in (calibrate, check):
        parser.add_argument(
            "--ranks", type=lambda text: [positive(item) for item in text.split(",")], default=list(DEFAULT_RANKS),
            metavar="R,...", help="of the servers (default 1,2,4)",
        )  # fmt: skip


def run_calibrate(parsed: argparse.Namespace) -> str:
    """Raises `InvalidInput`, and `Unsupported` if what is measured fails."""
    require_file("--json", parsed.json)
    from sglang_ascend_moe.launch.bench.serving_client import ClientFailed
    from sglang_ascend_moe.launch.plan.calibration import calibrated
    from sglang_ascend_moe.launch.servers.server_process import ServerFailed

    with interrupts.raised(), tempfile.TemporaryDirectory(prefix="ascend-moe-plan-") as name:
        try:
            machine = calibrated(parsed.ranks, Path(name), _tell)
        except (ClientFailed, ServerFailed) as error:
            raise Unsupported(f"--ranks {','.join(map(str, parsed.ranks))}: {error}") from error
    write_json(parsed.json, machine)
    return f"{parsed.json}: {machine.name}; `ascend-moe plan check --machine {parsed.json}` tells how good it is"


def run_check(parsed: argparse.Namespace) -> str:
    """Raises `InvalidInput`, and `Unsupported` if a server fails or predictions are not good enough."""
    for flag, path in (("--json", parsed.json), ("--plot", parsed.plot)):
        require_file(flag, path)
    if parsed.plot is not None and not can_plot("plan check"):
        raise SystemExit(CANNOT)
    machine = read_machine(parsed.machine)
    from sglang_ascend_moe.launch.bench.serving_client import ClientFailed
    from sglang_ascend_moe.launch.plan.calibration import CHECKED, Asked, predicted, span_of, work_in
    from sglang_ascend_moe.launch.plan.measured_servers import deployments, served
    from sglang_ascend_moe.launch.servers.server_process import ServerFailed

    compared = []
    with interrupts.raised(), tempfile.TemporaryDirectory(prefix="ascend-moe-plan-") as name:
        folder = Path(name)
        try:
            for deployed in deployments(parsed.ranks):
                with served(folder, deployed) as ask:
                    for load in CHECKED:
                        asked = Asked(deployed, load)
                        _tell(asked.name)
                        found = ask(load)
                        span = None if load.rate is None else span_of(found)
                        mine = predicted(machine, work_in(folder / "model"), asked, span)
                        ttft, tpot = mine.median
                        compared.append(
                            Compared(
                                name=asked.name,
                                schedule=deployed.schedule,
                                ttft_ms=(ttft * 1e3, found.median_ttft_ms),
                                tpot_ms=(tpot * 1e3, found.median_tpot_ms),
                                output_tokens_per_s=(mine.output_rate, found.output_tokens_per_s)
                                if span is None
                                else None,
                            )
                        )
        except (ClientFailed, ServerFailed) as error:
            raise Unsupported(f"--ranks {','.join(map(str, parsed.ranks))}: {error}") from error
    if parsed.json is not None:
        write_json(parsed.json, compared)
    if parsed.plot is not None:
        from sglang_ascend_moe.launch.plan.prediction_plot import draw_predictions

        draw_predictions(compared, parsed.plot)
    table = comparison_table(compared)
    wrong = [measure.title for measure in MEASURES if not verdict(measure.pairs(compared)).is_good]
    if wrong:
        print(table)
        raise Unsupported(
            f"predictions of {'; '.join(wrong)} are not good enough; run `ascend-moe plan calibrate` idle"
        )
    return table


def _tell(what: str) -> None:
    print(what, flush=True)
