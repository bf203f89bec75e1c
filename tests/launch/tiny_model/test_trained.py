"""The trained models answer exercises that they were not trained on."""

import random

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sglang_ascend_moe.launch import demo
from sglang_ascend_moe.launch.tiny_model import trained, training
from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.launch.tiny_model.exercises import HELD_OUT, drawn
from sglang_ascend_moe.launch.tiny_model.model_sizes import TRAINED_FAMILIES, TRAINED_SIZES
from sglang_ascend_moe.launch.tiny_model.tiny_model_command import main
from sglang_ascend_moe.launch.tiny_model.tokenizer import build_tokenizer, chat_prompt
from sglang_ascend_moe.serving.launcher.exit_codes import OK

ASKED = 600
"""Exercises, every other one as a chat."""
RIGHT = 0.95
"""Of answers, every token of which has to be right."""
MOST_BYTES = 3_000_000
SHORT = training.Course(steps=2, rate=1e-3, seed=0, batch=4)


@pytest.mark.parametrize("family", TRAINED_FAMILIES)
def test_exercises_that_were_held_out_are_answered(tmp_path, family):
    exercises = drawn(random.Random(1), ASKED, held_out=True)
    model = AutoModelForCausalLM.from_pretrained(trained.write_trained(tmp_path, family), dtype=torch.bfloat16)
    right = 0
    for chat in (False, True):
        batch = training.batch_of(build_tokenizer(TRAINED_SIZES.vocab), exercises[chat::2], chat=chat)
        with torch.inference_mode():
            found = model(batch.ids[:, :-1]).logits.argmax(-1)
        wanted = batch.targets[:, 1:]
        right += int(((found == wanted) | (wanted == training.NOT_ASKED)).all(dim=1).sum())
    assert right >= RIGHT * ASKED


@pytest.mark.parametrize("family", TRAINED_FAMILIES)
def test_the_same_courses_give_the_same_bits_and_another_seed_others(family):
    first, again, other = (training.train(family, [SHORT._replace(seed=seed), SHORT]) for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("family", TRAINED_FAMILIES)
def test_tensors_are_those_of_a_checkpoint_of_the_family_and_its_draft(tmp_path, family):
    random_one = load_file(write_checkpoint(tmp_path / "random", family, TRAINED_SIZES) / "model.safetensors")
    found = load_file(trained.write_trained(tmp_path / "trained", family) / "model.safetensors")
    draft = f"model.layers.{TRAINED_SIZES.layers}."
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items() if not name.startswith(draft)} == {
        name: (tensor.shape, tensor.dtype) for name, tensor in random_one.items()
    }
    assert any(name.startswith(draft) for name in found) == (family in trained.WITH_DRAFTS)


def test_the_tensors_in_the_repository_are_small():
    assert sum(trained.tensor_file(family).stat().st_size for family in TRAINED_FAMILIES) < MOST_BYTES


def test_no_exercise_of_the_demo_was_trained_on():
    assert [question for question in demo.QUESTIONS if not question.exercise.is_held_out] == []
    assert len({question.exercise for question in demo.QUESTIONS}) == len(demo.QUESTIONS)


def test_what_is_drawn_is_held_out_or_not_as_asked():
    for held_out in (False, True):
        assert {exercise.is_held_out for exercise in drawn(random.Random(0), 3 * HELD_OUT, held_out=held_out)} == {
            held_out
        }


def test_a_chat_is_trained_as_the_template_writes_it(tmp_path):
    assert main([str(tmp_path), "--trained"]) == OK
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    written = tokenizer.apply_chat_template(
        [{"role": "user", "content": "copy 12"}], tokenize=False, add_generation_prompt=True
    )
    assert written == chat_prompt("copy 12")


def test_a_family_that_was_not_trained_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path), "--trained", "--family", "glm4_moe"])
    assert "choose --family qwen3_moe or deepseek_v3" in capsys.readouterr().err
