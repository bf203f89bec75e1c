"""The rates of all ranks as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sglang_ascend_moe.launch.top.rates import RankRates, straggler

if TYPE_CHECKING:
    from rich.console import RenderableType

LATE, UNEVEN, FULL = 0.1, 1.5, 0.9
"""From here on a number is shown as one to look at: a share of waiting, an imbalance, a window's fill."""


def view(url: str, rates: Sequence[RankRates]) -> RenderableType:
    """A table for each pipeline stage, and one line about it: who is waited for, and who gets most rows."""
    parts: list[RenderableType] = []
    for stage, those in groupby(rates, key=lambda one: one.stage):
        ranks = list(those)
        parts += [_table(f"{url}, stage {stage}" if rates[-1].stage else url, ranks), _summary(ranks)]
    return Group(*parts)


def _table(title: str, rates: Sequence[RankRates]) -> Table:
    # In 80 columns, as a terminal may be no wider.
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))
    for name in ("rank", "rows/s", "tokens/s", "dispatch", "combine", "waits for", "imbalance", "window", "replays/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in rates:
        table.add_row(
            str(one.rank),
            # Of what an NPU does on its own the host is not told.
            f"{one.rows_s:,.0f}" if one.rows_s or not (one.tokens_s or one.replays_s) else "-",
            f"{one.tokens_s:,.0f}",
            _percent(one.dispatch),
            _percent(one.combine),
            _waits(one),
            Text("-") if one.imbalance is None else _marked(f"{one.imbalance:.2f}", one.imbalance >= UNEVEN),
            Text("-") if one.fill is None else _marked(_percent(one.fill), one.fill >= FULL),
            f"{one.replays_s:,.1f}" if one.graphs != "none" else "-",
        )
    return table


def _waits(one: RankRates) -> Text:
    """For whom this rank waits most, and how long."""
    others = [(share, peer) for peer, share in enumerate(one.held_up) if peer != one.rank]
    if not others:
        return Text("-")
    share, peer = max(others)
    return _marked(f"{peer}: {_percent(share)}", share >= LATE)


def _summary(rates: Sequence[RankRates]) -> Text:
    found = straggler(rates, rates[0].stage)
    said = []
    if found is not None and found[1] >= LATE:
        said.append(f"rank {found[0]} holds the others up for {_percent(found[1])} of the time")
    uneven = max((one for one in rates if one.imbalance is not None), key=lambda one: one.imbalance or 0, default=None)
    if uneven is not None and uneven.imbalance is not None and uneven.imbalance >= UNEVEN:
        said.append(f"rank {uneven.rank} receives {uneven.imbalance:.2f} times the mean")
    if not any(one.tokens_s or one.replays_s for one in rates):
        said.append("no tokens come: the server is idle")
    return Text("; ".join(said) or "no rank is late, and none gets far more than others")


def _marked(text: str, is_marked: bool) -> Text:
    return Text(text, style="bold red" if is_marked else "")


def _percent(share: float) -> str:
    return f"{share:.1%}"
