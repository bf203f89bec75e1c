"""docs/operations.md explains every flag, every key that `ascend-moe doctor --json` prints, every metric, no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from sglang_ascend_moe.launch.doctor.examination import DISTRIBUTIONS, DoctorReport
from sglang_ascend_moe.serving import options
from sglang_ascend_moe.serving.options import Options
from sglang_ascend_moe.serving.worker import metrics
from sglang_ascend_moe.serving.worker.live_state import RankState
from tests.packaging.source_tree import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()


def keys_of(kind: Any, prefix: str = "") -> Iterator[str]:
    """The keys of a struct as JSON, `a.b` for nested ones, `a[].b` for those in a list, `a.*.b` for those in a dict."""
    for field in msgspec.inspect.type_info(kind).fields:
        yield from _keys_of_type(field.type, f"{prefix}{field.encode_name}")


def _keys_of_type(found: msgspec.inspect.Type, name: str) -> Iterator[str]:
    match found:
        case msgspec.inspect.StructType(cls=cls) if cls is not Options:
            yield from keys_of(cls, f"{name}.")
        case msgspec.inspect.ListType(item_type=msgspec.inspect.StructType() as item):
            yield from _keys_of_type(item, f"{name}[]")
        case msgspec.inspect.DictType(value_type=msgspec.inspect.StructType() as value):
            yield from _keys_of_type(value, f"{name}.*")
        case _:
            yield name


def section(title: str) -> str:
    """The part of the page below a heading, up to the next of the same depth or above."""
    depth = title.split(" ")[0]
    text = PAGE.split(f"\n{title}\n")[1]
    return re.split(rf"^#{{1,{len(depth)}}} ", text, flags=re.MULTILINE)[0]


def listed(title: str) -> list[str]:
    rows = re.findall(r"^\| (`.+?) \|", section(title), flags=re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize(
    ("kind", "title"),
    [(DoctorReport, "### Keys of `--json`"), (RankState, "### Keys of `--url --json`")],
    ids=["this machine", "a running server"],
)
def test_every_key_is_explained_and_exists(kind: type, title: str):
    assert sorted(listed(title)) == sorted(keys_of(kind))


def test_every_flag_is_explained_and_exists():
    assert listed("## Flags") == [options.ASK_FLAG, *(flag.flag for flag in options.FLAGS.values())]


def test_every_version_is_named():
    named = re.findall(r"`([^`]+)`", next(row for row in section("### Keys of `--json`").splitlines() if "CANN" in row))
    assert set(named) == {"versions", "python", *DISTRIBUTIONS, "cann", "driver", "not installed"}


def test_every_metric_is_explained_and_exists():
    counters = [*metrics.PHASE_METRICS, metrics.WAIT_METRIC, metrics.REPLAY_METRIC]
    others = [metrics.WINDOW_METRIC, *metrics.HISTOGRAMS.values()]
    names = [*(f"{metric.name}_total" for metric in counters), *(metric.name for metric in others)]
    assert sorted(listed("## Metrics")) == sorted(names)
