"""Hugging Face's own implementation of a checkpoint, and ways to make it a wrong model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from sglang_ascend_moe.launch.comparison import Answer, Candidate
from tests.npu.operators.quantisation import by_row
from tests.serving.engine_process import TOP_LOGPROBS

Damage = Callable[[Any], None]


class ReferenceModel:
    """A checkpoint as `transformers` computes it. `damage` changes the model after it is loaded."""

    def __init__(self, checkpoint: Path, damage: Damage | None = None, dtype: torch.dtype = torch.float32) -> None:
        self._model, loading = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, output_loading_info=True)
        if problems := {what: names for what, names in loading.items() if names}:
            raise ValueError(f"{type(self._model).__name__} does not have exactly the tensors of its file: {problems}")
        self._model.eval()
        if damage is not None:
            with torch.no_grad():
                damage(self._model)

    def distance(self, prompt: list[int], answer: Answer) -> float:
        """Largest difference between the logprob of a candidate of `answer` and this model's for the same token."""
        return float(self.distances(prompt, answer).max())

    def answers(self, prompts: list[list[int]], new_tokens: int) -> list[Answer]:
        """Greedy continuations, one prompt after the other."""
        return [self._answer(prompt, new_tokens) for prompt in prompts]

    def along(self, prompts: list[list[int]], answers: list[Answer]) -> list[Answer]:
        """What it would say at each position of `answers`: up to where a token differs, its own greedy continuation."""
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            with torch.inference_mode():
                made = self._model(torch.tensor([prompt + answer.tokens[:-1]])).logits[0, len(prompt) - 1 :]
            candidates = _candidates(made)
            found.append(Answer([position[0].token for position in candidates], candidates))
        return found

    def distances(self, prompt: list[int], answer: Answer) -> Tensor:
        """The same of each token's candidates, [tokens]."""
        return (self._logprobs(prompt, answer) - listed_logprobs(answer)).abs().amax(1)

    def _answer(self, prompt: list[int], new_tokens: int) -> Answer:
        """With the keys of earlier tokens kept, as servers keep them."""
        tokens, candidates, kept, given = [], [], None, torch.tensor([prompt])
        with torch.inference_mode():
            for _ in range(new_tokens):
                made = self._model(given, past_key_values=kept, use_cache=True)
                candidates += _candidates(made.logits[0, -1:])
                tokens.append(candidates[-1][0].token)
                kept, given = made.past_key_values, torch.tensor([tokens[-1:]])
        return Answer(tokens, candidates)

    def _logprobs(self, prompt: list[int], answer: Answer) -> Tensor:
        """This model's logprobs of the candidates, [tokens, candidates]."""
        with torch.inference_mode():
            logits = self._model(torch.tensor([prompt + answer.tokens[:-1]])).logits[0, len(prompt) - 1 :]
        tokens = torch.tensor([[candidate.token for candidate in position] for position in answer.candidates])
        return logits.log_softmax(-1).gather(1, tokens)


def _candidates(logits: Tensor) -> list[list[Candidate]]:
    """The likeliest tokens of each position [positions, vocabulary]."""
    best = logits.float().log_softmax(-1).topk(TOP_LOGPROBS)
    positions = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [[Candidate(*pair) for pair in zip(*position, strict=True)] for position in positions]


def listed_logprobs(answer: Answer) -> Tensor:
    """Logprobs of the candidates of an answer, [tokens, candidates]."""
    return torch.tensor([[candidate.logprob for candidate in position] for position in answer.candidates])


def with_quantised_rows(model: Any) -> None:
    """Rows are quantised before each product of a routed expert."""
    for name, module in model.named_modules():
        if name.endswith(".mlp.experts"):
            module.forward = partial(_of_quantised_rows, module)


def _of_quantised_rows(experts: Any, rows: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    sums = torch.zeros_like(rows)
    for expert in ids.unique().tolist():
        tokens, places = torch.where(ids == expert)
        gate, up = (_quantised(rows[tokens]) @ experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        results = _quantised(experts.act_fn(gate) * up) @ experts.down_proj[expert].T
        sums.index_add_(0, tokens, results * weights[tokens, places, None])
    return sums


def _quantised(rows: Tensor) -> Tensor:
    numbers, scales = by_row(rows)
    return numbers.float() * scales[:, None]


def without_shared_experts(model: Any) -> None:
    for name, module in model.named_modules():
        if name.endswith((".shared_expert", ".shared_experts")):
            module.down_proj.weight.zero_()


def with_open_shared_gate(model: Any) -> None:
    """The shared expert is added with the same weight, a half, to every row."""
    for name, module in model.named_modules():
        if name.endswith(".shared_expert_gate"):
            module.weight.zero_()


def without_routed_scaling(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "routed_scaling_factor"):
            module.routed_scaling_factor = 1.0


def without_correction_bias(model: Any) -> None:
    for name, buffer in model.named_buffers():
        if name.endswith(".e_score_correction_bias"):
            buffer.zero_()


def with_one_group(model: Any) -> None:
    """Experts are chosen from all groups instead of the best ones."""
    for module in model.modules():
        if hasattr(module, "topk_group"):
            module.topk_group = module.num_group


def with_shifted_experts(model: Any) -> None:
    """In the last layer every expert answers in place of its neighbour, as with ids that are off by one."""
    experts = [module for name, module in model.named_modules() if name.endswith(".mlp.experts")][-1]
    for weight in (experts.gate_up_proj, experts.down_proj):
        weight.copy_(weight.roll(1, 0))


def with_every_key(model: Any) -> None:
    """The attention of every token sees all tokens before it."""
    for name, module in model.named_modules():
        if name.endswith(".indexer"):
            module.index_topk = model.config.max_position_embeddings


def without_the_indexers_positions(model: Any) -> None:
    """An indexer scores keys by what they say alone."""
    for name, module in model.named_modules():
        if name.endswith(".indexer.wq_b"):
            heads = module.weight.unflatten(0, (model.config.index_n_heads, -1))
            heads[:, : model.config.qk_rope_head_dim].zero_()


DAMAGES: dict[str, tuple[Damage, ...]] = {
    "qwen3_moe": (with_shifted_experts,),
    "qwen2_moe": (with_shifted_experts, without_shared_experts, with_open_shared_gate),
    "glm4_moe": (with_shifted_experts, without_shared_experts, without_routed_scaling, without_correction_bias),
    "deepseek_v2": (with_shifted_experts, without_shared_experts, without_routed_scaling, with_one_group),
    "deepseek_v3": (
        with_shifted_experts,
        without_shared_experts,
        without_routed_scaling,
        without_correction_bias,
        with_one_group,
    ),
    "minimax_m2": (with_shifted_experts, without_correction_bias),
}
