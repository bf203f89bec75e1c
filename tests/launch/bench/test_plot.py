"""The picture shows every variant and claims only what was measured."""

import re
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.bench.plot import LONGEST_BAR, bar_lengths, draw, drawn_over_tokens, headline, subtitle

from .shapes import absent, case, records


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_run_is_drawn(tmp_path: Path, suffix: str):
    run = [
        record
        for tokens in (16, 48)
        for dtype in ("bf16", "int8")
        for record in (
            *records({"relay-free": (10, 20), "relay": (40, 60), "memcpy": (9, 19)}, case(tokens=tokens, dtype=dtype)),
            *absent("mpi", "no mpirun", case(tokens=tokens, dtype=dtype)),
        )
    ]
    path = tmp_path / f"run{suffix}"
    draw(run, path)
    begin = path.read_bytes()[:200]
    assert begin.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in begin


def test_the_same_run_gives_the_same_picture(tmp_path: Path):
    run = records({"relay-free": (10, 20), "relay": (40, 60)})
    for name in ("one.svg", "two.svg"):
        draw(run, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


SLOW_OVER_GLOO = records({"relay-free": (10, 20), "relay": (40, 60), "collective": (400, 150), "memcpy": (5, 10)})


def test_a_bar_that_would_crush_the_others_is_broken():
    assert bar_lengths(SLOW_OVER_GLOO, "dispatch") == pytest.approx(
        {"relay-free": 1.0, "relay": 4.0, "collective": LONGEST_BAR, "memcpy": 0.5}
    )
    assert bar_lengths(SLOW_OVER_GLOO, "combine")["collective"] == pytest.approx(7.5)


def test_what_has_a_broken_bar_has_no_line_and_the_picture_says_so():
    assert drawn_over_tokens(SLOW_OVER_GLOO) == ["relay-free", "relay", "memcpy"]
    assert subtitle(SLOW_OVER_GLOO).endswith("; lines without collective")
    assert "without" not in subtitle(records({"relay-free": (10, 20), "relay": (40, 60)}))


def test_a_broken_bar_has_its_ratio_beside_it(tmp_path: Path):
    draw(SLOW_OVER_GLOO, tmp_path / "run.svg")
    # matplotlib names the text that it draws as paths.
    assert re.search(r"<!--\s+40 -->", (tmp_path / "run.svg").read_text())


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (
            {"relay-free": (10, 20), "relay": (40, 60)},
            "dispatch 4.0 times, combine 3.0 times as fast as through",
        ),
        ({"relay-free": (10, 20), "mpi": (20, 50)}, "dispatch 2.0 times, combine 2.5 times as fast as over MPI"),
        ({"relay-free": (10, 20), "relay": (9, 60)}, "Dispatch and combine, without relay and otherwise"),
        ({"relay-free": (10, 20)}, "Dispatch and combine, without relay and otherwise"),
    ],
    ids=["relay", "mpi only", "slower in one", "alone"],
)
def test_headline_claims_what_the_numbers_say(times: dict[str, tuple[float, float]], said: str):
    assert said in headline(records(times))
