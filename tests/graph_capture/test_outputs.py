"""What a replayed step returns is what the step computed, also when it is read after the next step has run."""

from dataclasses import dataclass
from typing import Any

import torch

from sglang_ascend_moe.graph_capture.arena import Arena
from sglang_ascend_moe.graph_capture.step_outputs import recorded, replayed
from sglang_ascend_moe.graph_capture.tape import record


@dataclass
class Output:
    """As SGLang's LogitsProcessorOutput."""

    next_token_logits: torch.Tensor
    hidden_states: torch.Tensor | None = None
    customized_info: dict[str, Any] | None = None
    length: int = 0


def test_what_is_read_after_the_next_step_is_of_its_own_step():
    x = torch.zeros(2, 4)
    outputs = []

    def step() -> dict[str, Any]:
        hidden = x + 1
        outputs.append(Output(hidden * 2, hidden, {"sums": [hidden.sum(1)], "name": "a"}, 3))
        return recorded(outputs[-1])

    tape = record(step, Arena())
    x.fill_(10)
    first = replayed(outputs[-1], tape.replay())
    x.fill_(20)
    second = replayed(outputs[-1], tape.replay())
    for output, value in ((first, 11.0), (second, 21.0)):
        assert torch.equal(output.hidden_states, torch.full((2, 4), value))
        assert torch.equal(output.customized_info["sums"][0], torch.full((2,), 4 * value))
        assert (output.customized_info["name"], output.length) == ("a", 3)
    assert torch.equal(second.next_token_logits, torch.full((2, 4), 42.0))


class HandedOn:
    """As SGLang's PPProxyTensors."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors


def test_what_a_stage_hands_on_is_of_its_own_step():
    x = torch.zeros(2, 4)
    outputs = []

    def step() -> dict[str, Any]:
        outputs.append(HandedOn({"hidden_states": x + 1, "residual": x * 2}))
        return recorded(outputs[-1])

    tape = record(step, Arena())
    x.fill_(10)
    first = replayed(outputs[-1], tape.replay())
    x.fill_(20)
    second = replayed(outputs[-1], tape.replay())
    assert isinstance(first, HandedOn)
    for output, value in ((first, 10.0), (second, 20.0)):
        assert torch.equal(output.tensors["hidden_states"], torch.full((2, 4), value + 1))
        assert torch.equal(output.tensors["residual"], torch.full((2, 4), value * 2))


def test_fields_without_tensors_are_left_to_the_template():
    assert recorded(Output(torch.zeros(1), None, {"name": "a"})).keys() == {"next_token_logits"}
