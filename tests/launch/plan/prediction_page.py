"""docs/benchmarks/predictions.md and its picture, from what `ascend-moe plan check --json` wrote:
`python -m tests.launch.plan.prediction_page`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sglang_ascend_moe.launch.plan.prediction_check import (
    GREATEST_ERROR,
    LEAST_TAU,
    MEASURES,
    MEDIAN_ERROR,
    Compared,
    verdict,
)
from sglang_ascend_moe.launch.plan.prediction_plot import draw_predictions

FOLDER = Path(__file__).parents[3] / "docs" / "benchmarks"
PAGE, PICTURE, RECORDS = (FOLDER / f"predictions.{suffix}" for suffix in ("md", "svg", "json"))


def read() -> list[Compared]:
    return msgspec.json.decode(RECORDS.read_bytes(), type=list[Compared])


def page(compared: list[Compared]) -> str:
    titles = [measure.title for measure in MEASURES]
    rows = [f"| {one.name} | " + " | ".join(_cells(measure.of(one)) for measure in MEASURES) + " |" for one in compared]
    judged = [(measure.title, verdict(measure.pairs(compared))) for measure in MEASURES]
    return "\n".join(
        [
            "# Predicted and measured",
            "",
            f"The model behind `ascend-moe plan schedule`, held against servers of one host: {len(compared)}"
            " configurations of the model of `ascend-moe bench serving`. `plan calibrate` measured the host, and each"
            " server with short prompts, long prompts and full steps: what a step, a token in it and a hand-over take"
            " beside products, attention and exchange is fitted, nothing else. `plan check` measures other loads;"
            " nothing else ran on the cores:",
            "",
            "    ascend-moe plan calibrate --json machine.json",
            "    ascend-moe plan check --machine machine.json --json compared.json --plot compared.svg",
            "",
            f"Good enough is a median error of at most {MEDIAN_ERROR:.0%}, none above {GREATEST_ERROR:.0%}, and"
            f" Kendall's tau (1: configurations are in the right order) of at least {LEAST_TAU}.",
            "",
            "| measure | median error | greatest | tau | |",
            "|---|---|---|---|---|",
            *(
                f"| {title} | {found.median_error:.0%} | {found.greatest_error:.0%} | {found.tau:.2f} |"
                f" {'good' if found.is_good else 'not good enough'} |"
                for title, found in judged
            ),
            "",
            "![Predicted over measured TTFT, TPOT and tokens per second](predictions.svg)",
            "",
            "Servers apart (1P1D) share this host's cores: that of two which work at a time each has half of them is"
            " assumed. They agree on each request before it is read, so that requests which come at once are read in"
            " one step: first tokens, which were there at one time, showed it. What is predicted of these is the model"
            " so corrected, from the calibration made before. In a later run, which other programs disturbed, it was"
            " held against them anew: TTFT 460 / 458, 457 / 538 and 238 / 201 ms.",
            "",
            "`buffer-centric` on hosts is torch.distributed's all-to-all without graphs. Times are medians; predicted /"
            " measured, and the difference. At a rate the span of the client's requests is given, and with it"
            " tokens/s.",
            "",
            "| configuration | " + " | ".join(f"{title} | " for title in titles) + " |",
            "|---|" + "---|---|" * len(titles),
            *rows,
            "",
        ]
    )


def _cells(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return "- | "
    mine, theirs = pair
    return f"{mine:,.1f} / {theirs:,.1f} | {mine / theirs - 1:+.0%}"


if __name__ == "__main__":
    records = read()
    PAGE.write_text(page(records))
    draw_predictions(records, PICTURE)
