"""What `--init-expert-location` is given is checked by rule before SGLang uses it."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.launcher.initial_location import Experts, refuse_initial_location

MODEL = Experts(layers=2, experts=4, redundant=2)
PLACES = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 3]]


def as_text(content: object) -> str:
    return json.dumps(content)


def check(value: str) -> None:
    refuse_initial_location(value, MODEL, read_tensors=True)


@pytest.mark.parametrize(
    "content",
    [
        {"physical_to_logical_map": PLACES},
        {"logical_count": [[1, 2, 3, 4], [0, 0, 0, 0]]},
        {"logical_count": [[[1, 2.5, 3, 4], [0, 0, 0, 0]]] * 3, "rank": 0},
    ],
    ids=["places", "counts", "records-of-counts"],
)
@pytest.mark.parametrize("form", ["text", "json", "pt"])
def test_a_location_that_fits_the_model_passes(tmp_path: Path, content: dict, form: str):
    value = as_text(content)
    if form == "json":
        (tmp_path / "location.json").write_text(value)
        value = str(tmp_path / "location.json")
    elif form == "pt":
        tensors = {name: torch.tensor(part) if isinstance(part, list) else part for name, part in content.items()}
        torch.save(tensors, tmp_path / "location.pt")
        value = str(tmp_path / "location.pt")
    check(value)


def changed(layer: int, place: int, expert: object) -> list[list[object]]:
    places: list[list[object]] = [list(row) for row in PLACES]
    places[layer][place] = expert
    return places


REFUSED = {
    "missing-expert": ({"physical_to_logical_map": [[0, 1, 2, 2, 0, 1], PLACES[1]]}, "no place for expert 3"),
    "id-too-large": ({"physical_to_logical_map": changed(1, 4, 99)}, "place 4 of layer 1 has expert 99"),
    "negative-id": ({"physical_to_logical_map": changed(0, 5, -1)}, "place 5 of layer 0 has expert -1"),
    "id-is-a-float": ({"physical_to_logical_map": changed(0, 0, 0.0)}, "place 0 of layer 0 has expert 0.0"),
    "id-is-a-bool": ({"physical_to_logical_map": changed(0, 0, False)}, "place 0 of layer 0 has expert False"),
    "too-few-places": ({"physical_to_logical_map": [[0, 1, 2, 3], PLACES[1]]}, "layer 0 has 4 entries; it must have 6"),
    "layer-too-many": ({"physical_to_logical_map": [*PLACES, PLACES[0]]}, "of 3 layers; it must be of the model's 2"),
    "no-layer": ({"physical_to_logical_map": []}, "a list for each layer"),
    "not-nested": ({"physical_to_logical_map": [0, 1]}, "layer 0 has 0"),
    "not-a-list": ({"physical_to_logical_map": 3}, "a list for each layer"),
    "other-key-beside": ({"physical_to_logical_map": PLACES, "rank": 0}, "'rank'"),
    "negative-count": ({"logical_count": [[1, 2, 3, -4], [0] * 4]}, "expert 3 of layer 0 has count -4"),
    "too-few-counts": ({"logical_count": [[1, 2, 3], [0] * 4]}, "layer 0 has 3 entries; it must have 4"),
    "counts-of-one-layer": ({"logical_count": [[1, 2, 3, 4]]}, "of 1 layers; it must be of the model's 2"),
    "neither": ({"places": PLACES}, "'physical_to_logical_map' or 'logical_count'"),
    "a-list": (PLACES[0], "an object in JSON"),
}


@pytest.mark.parametrize(("content", "rule"), REFUSED.values(), ids=REFUSED)
def test_a_location_that_would_end_a_rank_is_refused_by_its_rule(content: object, rule: str):
    with pytest.raises(InvalidInput) as refused:
        check(as_text(content))
    assert str(refused.value).startswith("--init-expert-location ")
    assert rule in str(refused.value)


@pytest.mark.parametrize("value", ["[1,2]", "{", "", "trivial ", "/nowhere.json", "/nowhere.pt"])
def test_what_is_no_location_is_refused_by_name(value: str):
    with pytest.raises(InvalidInput, match=r"^--init-expert-location"):
        check(value)


@pytest.mark.parametrize("folder", ["short", "long" * 50])
def test_a_file_that_torch_did_not_write_is_refused_by_its_whole_path(tmp_path: Path, folder: str):
    path = tmp_path / folder / "location.pt"
    path.parent.mkdir()
    path.write_bytes(b"no tensors")
    with pytest.raises(InvalidInput) as refused:
        check(str(path))
    rule = "must be a file that torch.save has written, of nothing but tensors"
    assert str(refused.value) == f"--init-expert-location {path}: {rule}"


def test_before_torch_is_imported_only_the_presence_of_tensors_is_checked(tmp_path: Path):
    path = tmp_path / "location.pt"
    with pytest.raises(InvalidInput, match="must be a file that can be read"):
        refuse_initial_location(str(path), MODEL, read_tensors=False)
    path.write_bytes(b"no tensors")
    refuse_initial_location(str(path), MODEL, read_tensors=False)


def test_the_default_is_no_file():
    check("trivial")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=20,
)


@given(st.sampled_from(["physical_to_logical_map", "logical_count"]), ANYTHING)
def test_whatever_json_says_is_taken_or_refused_by_name(key: str, content: object):
    refusal = None
    try:
        check(json.dumps({key: content}))
    except InvalidInput as error:
        refusal = str(error)
    assert refusal is None or refusal.startswith("--init-expert-location ")
