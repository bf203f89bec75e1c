"""Two placements of experts that differ anywhere are refused, and so is one that no rank could serve."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import ExpertPlacement, decode, encode
from sglang_ascend_moe.exchange.control.expert_placement import refuse_differences, refuse_unservable

SESSION = bytes(16)


def placement(rank: int = 0, **fields: object) -> ExpertPlacement:
    usual = {"change": 1, "epochs": [7], "logical_experts": 4, "layers": {0: [0, 1, 2, 3, 0, 1], 3: [3, 2, 1, 0, 3, 3]}}
    return ExpertPlacement(session=SESSION, rank=rank, **{**usual, **fields})


@st.composite
def placements(draw: st.DrawFn) -> ExpertPlacement:
    logical = draw(st.integers(1, 12))
    spare = draw(st.integers(0, 6))
    order = random.Random(draw(st.integers(0, 2**32)))
    layers = {}
    for layer in draw(st.lists(st.integers(0, 60), max_size=4, unique=True)):
        layers[layer] = [*range(logical), *(order.randrange(logical) for _ in range(spare))]
        order.shuffle(layers[layer])
    return placement(
        logical_experts=logical, layers=layers, epochs=draw(st.lists(st.integers(0, 2**48 - 1), max_size=3))
    )


@given(placements())
def test_a_placement_survives_the_wire_and_agrees_with_itself(drawn: ExpertPlacement):
    received = decode(encode(drawn), ExpertPlacement, SESSION)
    assert received == drawn
    refuse_differences([drawn, msgspec.structs.replace(received, rank=1)])
    refuse_unservable(drawn, 1)


@given(placements(), st.data())
def test_one_expert_elsewhere_is_seen_on_every_rank(drawn: ExpertPlacement, data: st.DataObject):
    layers = {layer: list(experts) for layer, experts in drawn.layers.items()}
    if not layers:
        return
    layer = data.draw(st.sampled_from(sorted(layers)))
    place = data.draw(st.integers(0, len(layers[layer]) - 1))
    layers[layer][place] += 1
    other = msgspec.structs.replace(drawn, rank=1, layers=layers)
    with pytest.raises(ProtocolMismatch) as refusal:
        refuse_differences([drawn, other])
    assert f"physical expert {place} of layer {layer} is" in str(refusal.value)
    assert f"{drawn.layers[layer][place]} on rank 0 and {layers[layer][place]} on rank 1" in str(refusal.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"change": 2}, "`change` is 1 on rank 0 and 2 on rank 2", id="change"),
        pytest.param({"epochs": [8]}, "`epochs` is [7] on rank 0 and [8] on rank 2", id="epochs"),
        pytest.param({"logical_experts": 5}, "`logical_experts` is 4 on rank 0 and 5 on rank 2", id="logical-experts"),
        pytest.param(
            {"layers": {0: [0, 1, 2, 3, 0, 1]}},
            "a change of layer 3 is wanted on rank 0 and not wanted on rank 2",
            id="layer-left-out",
        ),
        pytest.param(
            {"layers": {0: [0, 1, 2, 3], 3: [3, 2, 1, 0, 3, 3]}},
            "the number of physical experts of layer 0 is 6 on rank 0 and 4 on rank 2",
            id="number-of-experts",
        ),
    ],
)
def test_a_difference_is_named_with_both_values(fields: dict[str, object], message: str):
    with pytest.raises(ProtocolMismatch) as refusal:
        refuse_differences([placement(0), placement(1), placement(2, **fields)])
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        pytest.param([0, 1, 2, 2, 1, 0], "logical expert 3 is nowhere", id="missing"),
        pytest.param([0, 1, 2, 3, 4, 0], "there is no expert 4", id="unknown"),
        pytest.param([0, 1, 2, 3, 0], "cannot be divided among 2 ranks", id="uneven"),
    ],
)
def test_a_placement_that_cannot_be_served_is_refused(experts: list[int], message: str):
    with pytest.raises(InvalidInput, match=message) as refusal:
        refuse_unservable(placement(layers={5: experts}), 2)
    assert "layer 5" in str(refusal.value)


@pytest.mark.parametrize(
    "damage",
    [
        {"layers": {"0": [0, 1]}},
        {"layers": {0: [0, -1]}},
        {"layers": {2000: [0]}},
        {"logical_experts": 0},
        {"change": -1},
        {"epochs": [2**48]},
        {"placement": []},
    ],
    ids=str,
)
def test_a_block_that_is_no_placement_is_refused(damage: dict[str, object]):
    data = msgspec.msgpack.encode({**msgspec.to_builtins(placement()), "type": "ExpertPlacement", **damage})
    with pytest.raises(ProtocolMismatch, match="not a ExpertPlacement block"):
        decode(data, ExpertPlacement, SESSION)
