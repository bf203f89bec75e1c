"""`ascend-moe monitoring` writes what Prometheus takes, alerts that fire for whom they should, and a dashboard."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sglang_ascend_moe.launch.monitoring.monitoring_command import FILES, main
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE
from sglang_ascend_moe.serving.worker import metrics
from tests.launch.monitoring.written_queries import expressions_of, panels_of

ALERT_TESTS = Path(__file__).parent / "alerts_test.yml"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monitoring") / "new"
    assert main([str(folder)]) == OK
    return folder


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_files_are_written_once(written, capsys):
    assert sorted(path.name for path in written.iterdir()) == sorted(FILES)
    (written / "prometheus.yml").open("a").write("# ours\n")
    assert main([str(written)]) == WRONG_USAGE
    assert f"{written / FILES[0]}: File exists; give another folder" in capsys.readouterr().err
    assert (written / "prometheus.yml").read_text().endswith("# ours\n")


def test_prometheus_takes_configuration_and_rules(written):
    promtool("check", "config", written / "prometheus.yml")


def test_alerts_fire_for_whom_they_should():
    promtool("test", "rules", ALERT_TESTS)


def test_every_alert_is_tested_and_says_what_to_do(written):
    tested = set(re.findall(r'alertname="(\w+)", alertstate', ALERT_TESTS.read_text()))
    [group] = yaml.safe_load((written / "alerts.yml").read_text())["groups"]
    alerts = [rule for rule in group["rules"] if "alert" in rule]
    assert {rule["alert"] for rule in alerts} == tested
    assert [rule["alert"] for rule in alerts if not {"summary", "description"} <= set(rule["annotations"])] == []


def test_panels_are_told_apart_and_lie_beside_each_other(written):
    panels = list(panels_of(written / "dashboard.json"))
    everything = json.loads((written / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    cells = [cell for panel in everything for cell in cells_of(**panel["gridPos"])]
    assert len(set(cells)) == len(cells)
    assert all(x < 24 for x, _ in cells)
    assert [p["title"] for p in panels if len({t["refId"] for t in p["targets"]}) != len(p["targets"])] == []


def cells_of(x: int, y: int, w: int, h: int) -> Iterator[tuple[int, int]]:
    return itertools.product(range(x, x + w), range(y, y + h))


def test_every_metric_is_shown(written):
    exported = (
        *metrics.PHASE_METRICS, metrics.WAIT_METRIC, metrics.REPLAY_METRIC, metrics.WINDOW_METRIC,
        *metrics.HISTOGRAMS.values(),
    )  # fmt: skip
    asked = " ".join(expressions_of(written))
    assert [one.name for one in exported if not re.search(rf"\b{one.name}(_total|_bucket)?\b", asked)] == []
