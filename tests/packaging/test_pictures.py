"""The drawn pictures of the pages: files that they name exist, and no text leaves its box."""

import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from tests.packaging.source_tree import ROOT

SVG = "{http://www.w3.org/2000/svg}"
PICTURES = ["docs/architecture.svg", "docs/data-path.svg"]
# The widest of the fonts that the pictures name.
WIDEST_FONT = "DejaVu Sans"


class Box(NamedTuple):
    left: float
    top: float
    width: float
    height: float

    def holds(self, x: float, y: float) -> bool:
        return self.left <= x <= self.left + self.width and self.top <= y <= self.top + self.height


class Text(NamedTuple):
    """A line of text: its baseline begins at `left`; `anchor` lies on it, where the text was put."""

    words: str
    left: float
    right: float
    anchor: float
    baseline: float


def styles(root: ElementTree.Element) -> dict[str, str]:
    """Class -> its declarations."""
    return dict(re.findall(r"\.(\w+)\{([^}]*)\}", root.findtext(f"{SVG}style") or ""))


def texts(root: ElementTree.Element) -> list[Text]:
    declared = styles(root)
    found = []
    for element in root.iter(f"{SVG}text"):
        style = declared[element.get("class", "")]
        size = re.search(r"font-size:(\d+)px", style)
        font = FontProperties(
            family=WIDEST_FONT,
            weight="bold" if "font-weight:bold" in style else "normal",
            size=float(size[1] if size else root.get("font-size", "")),
        )
        words = element.text or ""
        width = TextPath((0, 0), words, prop=font).get_extents().width
        anchor = float(element.get("x", ""))
        middle = element.get("text-anchor") == "middle" or "text-anchor:middle" in style
        left = anchor - width / 2 if middle else anchor
        found.append(Text(words, left, left + width, anchor, float(element.get("y", ""))))
    return found


def boxes(root: ElementTree.Element) -> list[Box]:
    return [
        Box(*(float(element.get(name, "0")) for name in ("x", "y", "width", "height")))
        for element in root.iter(f"{SVG}rect")
    ]


@pytest.mark.parametrize("picture", PICTURES)
def test_no_text_leaves_the_box_that_it_stands_in(picture: str):
    root = ElementTree.parse(ROOT / picture).getroot()
    outside = []
    for text in texts(root):
        around = min(
            (box for box in boxes(root) if box.holds(text.anchor, text.baseline)),
            key=lambda box: box.width * box.height,
        )
        if text.left < around.left or text.right > around.left + around.width:
            outside.append(text.words)
    assert outside == []


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_has_a_ground_of_its_own_for_dark_pages(picture: str):
    root = ElementTree.parse(ROOT / picture).getroot()
    _, _, width, height = map(float, root.get("viewBox", "").split())
    ground = root.find(f"{SVG}rect")
    assert ground is not None
    assert (ground.get("width"), ground.get("height"), ground.get("fill")) == (f"{width:g}", f"{height:g}", "#ffffff")


def test_files_and_folders_that_the_architecture_names_exist():
    root = ElementTree.parse(ROOT / "docs/architecture.svg").getroot()
    named = {path: element.text or "" for element in root.iter(f"{SVG}text") if (path := element.get("data-path"))}
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
    assert [path for path, words in named.items() if not path.endswith(words.rstrip("/"))] == []


def test_a_row_passes_functions_that_the_files_have():
    root = ElementTree.parse(ROOT / "docs/architecture.svg").getroot()
    lines = [(element.get("data-path"), element.text or "") for element in root.iter(f"{SVG}text")]
    defined = {
        (path, function)
        for (path, _), (_, function) in pairwise(lines)
        if path is not None and path.endswith(".py") and re.fullmatch(r"[a-z_]+", function)
    }
    assert {function for _, function in defined} >= {"forward", "compute_experts", "dispatch", "combine"}
    missing = [
        (path, function) for path, function in defined if f"def {function}(" not in Path(ROOT / path).read_text()
    ]
    assert missing == []
