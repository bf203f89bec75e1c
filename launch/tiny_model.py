"""Small random checkpoints with a tokenizer, so that the whole serving path can run without any download.

`python -m sglang_ascend_moe.launch.tiny_model FOLDER` writes one. The same sizes and seed give the same bytes.

The weights are random, but not careless: a model with ordinary small weights decides its greedy tokens by less than
the rounding of bf16, repeats itself, or hardly notices its experts, and then says nothing about the layer under test.
So the router is sharp, the experts write most of the residual stream, the size of an expert's answer varies strongly
(which spreads the logits), and only tokens of readable text can be produced.
"""

import argparse
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from safetensors.torch import save_file

from sglang_ascend_moe.launch.tiny_tokenizer import TURN_END, build_tokenizer, readable_ids, write_tokenizer


class TinySizes(NamedTuple):
    """Sizes of a tiny model. Heads and experts divide by 4, so that four ranks can share them."""

    layers: int = 4
    hidden: int = 128
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    experts: int = 16
    topk: int = 4
    expert_hidden: int = 64
    vocab: int = 768
    max_positions: int = 2048


class Checkpoint(NamedTuple):
    """What a family's function returns: the content of config.json and every tensor by its checkpoint name."""

    config: dict[str, object]
    tensors: dict[str, torch.Tensor]


class Init(NamedTuple):
    """Gains of the random weights: the factor by which each multiplies the standard deviation of unit input.

    Chosen by measurement: larger experts or sharper attention let the rounding of bf16 grow through the layers until
    it decides tokens; smaller ones let the model repeat itself, or say the same without its experts.
    """

    value_out: float = 0.7
    query_norm: float = 2.0  # the constant weight of q_norm: how sharply attention chooses
    router: float = 3.0
    expert_in: float = 0.5
    expert_out: float = 2.5
    head: float = 4.0


class RandomWeights:
    """bf16 tensors of normal random numbers that depend on the seed and the tensor's name only."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def normal(self, name: str, *shape: int, std: float) -> torch.Tensor:
        """A tensor of `shape`, bf16, mean 0, standard deviation `std`."""
        generator = numpy.random.Generator(numpy.random.PCG64([self._seed, zlib.crc32(name.encode())]))
        return torch.from_numpy(generator.standard_normal(shape, dtype=numpy.float32) * std).to(torch.bfloat16)

    def linear(self, name: str, out_features: int, in_features: int, *, gain: float) -> torch.Tensor:
        """A weight [out_features, in_features] that multiplies the standard deviation of unit input by `gain`."""
        return self.normal(name, out_features, in_features, std=gain * in_features**-0.5)


def qwen3_moe(sizes: TinySizes, weights: RandomWeights, init: Init, producible: list[int]) -> Checkpoint:
    """Qwen3-MoE: every layer sparse, softmax routing with renormalised top-k weights, no shared expert."""
    hidden, head_dim = sizes.hidden, sizes.head_dim
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": sizes.expert_hidden * sizes.topk,
        "max_position_embeddings": sizes.max_positions,
        "mlp_only_layers": [],
        "moe_intermediate_size": sizes.expert_hidden,
        "norm_topk_prob": True,
        "num_attention_heads": sizes.heads,
        "num_experts": sizes.experts,
        "num_experts_per_tok": sizes.topk,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": sizes.vocab,
    }
    head = torch.zeros(sizes.vocab, hidden, dtype=torch.bfloat16)
    head[producible] = weights.linear("lm_head.weight", len(producible), hidden, gain=init.head)
    tensors = {
        "model.embed_tokens.weight": weights.normal("model.embed_tokens.weight", sizes.vocab, hidden, std=1.0),
        "model.norm.weight": torch.ones(hidden, dtype=torch.bfloat16),
        "lm_head.weight": head,
    }
    for layer in range(sizes.layers):
        prefix = f"model.layers.{layer}."
        for norm, width, scale in (
            ("input_layernorm", hidden, 1.0),
            ("post_attention_layernorm", hidden, 1.0),
            ("self_attn.q_norm", head_dim, init.query_norm),
            ("self_attn.k_norm", head_dim, 1.0),
        ):
            tensors[f"{prefix}{norm}.weight"] = torch.full((width,), scale, dtype=torch.bfloat16)
        projections = [
            ("self_attn.q_proj", sizes.heads * head_dim, hidden, 1.0),
            ("self_attn.k_proj", sizes.kv_heads * head_dim, hidden, 1.0),
            ("self_attn.v_proj", sizes.kv_heads * head_dim, hidden, init.value_out),
            ("self_attn.o_proj", hidden, sizes.heads * head_dim, init.value_out),
            ("mlp.gate", sizes.experts, hidden, init.router),
        ]
        for expert in range(sizes.experts):
            projections += [
                (f"mlp.experts.{expert}.gate_proj", sizes.expert_hidden, hidden, init.expert_in),
                (f"mlp.experts.{expert}.up_proj", sizes.expert_hidden, hidden, init.expert_in),
                (f"mlp.experts.{expert}.down_proj", hidden, sizes.expert_hidden, init.expert_out),
            ]
        for name, out_features, in_features, gain in projections:
            name = f"{prefix}{name}.weight"
            tensors[name] = weights.linear(name, out_features, in_features, gain=gain)
    return Checkpoint(config, tensors)


FAMILIES: dict[str, Callable[[TinySizes, RandomWeights, Init, list[int]], Checkpoint]] = {"qwen3_moe": qwen3_moe}


def write_checkpoint(
    folder: Path,
    family: str = "qwen3_moe",
    sizes: TinySizes = TinySizes(),  # noqa: B008 - immutable
    seed: int = 0,
    init: Init = Init(),  # noqa: B008 - immutable
) -> Path:
    """Write config, weights and tokenizer of one tiny model into `folder` (created if missing), and return it.

    The same arguments give the same bytes in every file. Raises KeyError for an unknown family.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(sizes.vocab)
    checkpoint = FAMILIES[family](sizes, RandomWeights(seed), init, readable_ids(tokenizer))
    end = tokenizer.token_to_id(TURN_END)
    write_tokenizer(tokenizer, folder, sizes.max_positions)
    _write_json(folder / "config.json", {**checkpoint.config, "eos_token_id": end, "bos_token_id": None})
    _write_json(folder / "generation_config.json", {"eos_token_id": end, "do_sample": False})
    save_file(checkpoint.tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Command line: write one checkpoint and print where it is."""
    parser = argparse.ArgumentParser(prog="tiny_model", description="Write a small random MoE checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--family", choices=sorted(FAMILIES), default="qwen3_moe")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    print(write_checkpoint(options.folder, options.family, seed=options.seed))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
