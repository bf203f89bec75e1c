"""The picture shows every variant and claims only what was measured."""

from pathlib import Path

import pytest

from sglang_ascend_moe.launch.bench.plot import draw, headline

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
