"""What the written dashboard and rules ask Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

COMPARISON = re.compile(r" (?:and|>|<|==)(?: on \([\w, ]*\))?(?: group_left \(\))? ")
"""Between what a rule measures and what it holds that against."""


def panels_of(dashboard: Path) -> Iterator[dict[str, Any]]:
    """Those that ask something: all but the titles of rows."""
    return (panel for panel in json.loads(dashboard.read_text())["panels"] if panel["type"] != "row")


def expressions_of(folder: Path) -> list[str]:
    """All of the dashboard, and of the rules what they compare, which has values also while no alert fires."""
    shown = [target["expr"] for panel in panels_of(folder / "dashboard.json") for target in panel["targets"]]
    [group] = yaml.safe_load((folder / "alerts.yml").read_text())["groups"]
    compared = [operand for rule in group["rules"] for operand in COMPARISON.split(rule["expr"])]
    return shown + [operand for operand in compared if not operand.replace(".", "").isdigit()]
