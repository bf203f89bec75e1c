"""docs/benchmarks/predictions.md says what was measured, as it was judged."""

from pathlib import Path

from sglang_ascend_moe.launch.plan.prediction_plot import draw_predictions
from tests.launch.plan.prediction_page import PAGE, PICTURE, page, read


def test_the_page_and_its_picture_show_what_was_measured(tmp_path: Path):
    compared = read()
    assert PAGE.read_text() == page(compared)
    drawn = tmp_path / PICTURE.name
    draw_predictions(compared, drawn)
    assert drawn.read_bytes() == PICTURE.read_bytes()
