"""Trains the tiny models that answer exercises: `python -m sglang_ascend_moe.launch.tiny_model.training FAMILY`.

The classes of transformers are trained on one thread, so that the same machine makes the same bits again; a layer for
multi-token prediction (MTP) together with the model that it drafts for.
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3DecoderLayer, DeepseekV3RMSNorm

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.launch.tiny_model.exercises import Exercise, drawn
from sglang_ascend_moe.launch.tiny_model.model_sizes import TRAINED_SIZES, TinySizes
from sglang_ascend_moe.launch.tiny_model.tokenizer import TURN_END, build_tokenizer, chat_prompt
from sglang_ascend_moe.launch.tiny_model.trained import WITH_DRAFTS, tensor_file

NOT_ASKED = -100
"""The target of a token that the model does not have to foresee."""
WARM_UP_STEPS = 100
LONGEST_GRADIENT = 1.0
DRAFT_WEIGHT = 0.5
"""Of what drafts get wrong, beside what the model does."""
REPORTED_STEPS = 25


class Course(NamedTuple):
    """`steps` of `batch` exercises each, with a rate that grows to `rate` and falls to nothing."""

    steps: int
    rate: float
    seed: int
    batch: int = 64


COURSES = (Course(steps=1200, rate=3e-3, seed=0), Course(steps=700, rate=1.5e-3, seed=1))


class Batch(NamedTuple):
    """Token ids and targets, both [exercises, longest]: targets are what stands there, or NOT_ASKED."""

    ids: Tensor
    targets: Tensor


class DraftLayer(nn.Module):
    """Foresees the token after the next from the rows that the head reads and the embedding of the next token."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.enorm = DeepseekV3RMSNorm(config.hidden_size)
        self.hnorm = DeepseekV3RMSNorm(config.hidden_size)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layer = DeepseekV3DecoderLayer(config, config.num_hidden_layers)
        self.norm = DeepseekV3RMSNorm(config.hidden_size)

    def forward(self, embedded: Tensor, rows: Tensor, rotation: Callable[[Tensor, Tensor], Any]) -> Tensor:
        """Rows for the head, [exercises, tokens, hidden], as both arguments are."""
        positions = torch.arange(rows.shape[1])[None]
        inner = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(rows)], dim=-1))
        return self.norm(self.layer(inner, position_ids=positions, position_embeddings=rotation(inner, positions)))


def train(family: str, courses: Sequence[Course] = COURSES, sizes: TinySizes = TRAINED_SIZES) -> dict[str, Tensor]:
    """The tensors of a checkpoint, in bfloat16; how far it is goes to stdout. The same arguments give the same bits."""
    torch.set_num_threads(1)
    torch.manual_seed(courses[0].seed)
    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.from_pretrained(write_checkpoint(Path(folder), family, sizes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    draft = DraftLayer(config).apply(model._init_weights) if family in WITH_DRAFTS else None
    tokenizer = build_tokenizer(sizes.vocab)
    for course in courses:
        learn(model, draft, tokenizer, course)
    return _checkpoint_tensors(model, draft)


def learn(model: Any, draft: DraftLayer | None, tokenizer: Tokenizer, course: Course) -> None:
    """One course; afterwards every parameter is a number of bfloat16."""
    parameters = [*model.parameters(), *(draft.parameters() if draft is not None else ())]
    optimizer = torch.optim.AdamW(parameters, lr=course.rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _part_of_rate(step, course.steps))
    generator = random.Random(course.seed)
    for step in range(course.steps):
        batch = batch_of(tokenizer, drawn(generator, course.batch, held_out=False), chat=step % 2 == 1)
        rows = model.model(batch.ids[:, :-1]).last_hidden_state
        loss = _loss(model.lm_head(rows), batch.targets[:, 1:])
        told = f"step {step}: {loss.item():.4f}"
        if draft is not None:
            embedded = model.model.embed_tokens(batch.ids[:, 1:-1])
            drafted = model.lm_head(draft(embedded, rows[:, :-1], model.model.rotary_emb))
            draft_loss = _loss(drafted, batch.targets[:, 2:])
            told += f", drafts {draft_loss.item():.4f}"
            loss = loss + DRAFT_WEIGHT * draft_loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, LONGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if step % REPORTED_STEPS == 0 or step == course.steps - 1:
            print(told, flush=True)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(parameter.bfloat16())


def batch_of(tokenizer: Tokenizer, exercises: Sequence[Exercise], *, chat: bool) -> Batch:
    """Exercises with their answers and the end of the turn, as completions or as chats, padded on the right."""
    end = tokenizer.token_to_id(TURN_END)
    ids, targets = [], []
    for exercise in exercises:
        prompt = tokenizer.encode(chat_prompt(exercise.question) if chat else exercise.prompt).ids
        answer = [*tokenizer.encode(exercise.answer).ids, end]
        ids.append(torch.tensor([*prompt, *answer]))
        targets.append(torch.tensor([NOT_ASKED] * len(prompt) + answer))
    pad = nn.utils.rnn.pad_sequence
    return Batch(pad(ids, batch_first=True), pad(targets, batch_first=True, padding_value=NOT_ASKED))


def _part_of_rate(step: int, steps: int) -> float:
    return min((step + 1) / WARM_UP_STEPS, (1 + math.cos(math.pi * step / steps)) / 2)


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NOT_ASKED)


def _checkpoint_tensors(model: nn.Module, draft: DraftLayer | None) -> dict[str, Tensor]:
    """By the names of published checkpoints, which have each expert by itself."""
    named = dict(model.state_dict())
    if draft is not None:
        prefix = f"model.layers.{model.config.num_hidden_layers}."
        outer = {"norm.weight": "shared_head.norm.weight"}
        for name, tensor in draft.state_dict().items():
            named[prefix + outer.get(name, name.removeprefix("layer."))] = tensor
    tensors: dict[str, Tensor] = {}
    for name, tensor in named.items():
        module, _, last = name.rpartition(".")
        if not module.endswith(".experts"):
            tensors[name] = tensor if last == "e_score_correction_bias" else tensor.bfloat16()
            continue
        projections = ("gate_proj", "up_proj") if last == "gate_up_proj" else (last,)
        for projection, weights in zip(projections, tensor.chunk(len(projections), dim=1), strict=True):
            for expert, weight in enumerate(weights.bfloat16()):
                tensors[f"{module}.{expert}.{projection}.weight"] = weight.contiguous()
    return tensors


def main(arguments: list[str]) -> int:
    """Trains the models of the families that are named, and keeps their tensors in this package."""
    for family in arguments:
        save_file(train(family), tensor_file(family), metadata={"format": "pt"})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
