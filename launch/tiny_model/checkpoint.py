"""Small random checkpoints with a tokenizer, so that the whole serving path can run without any download.

`python -m sglang_ascend_moe.launch.tiny_model FOLDER` writes one. The same sizes and seed give the same bytes.

The weights are random, but not careless: a model with ordinary small weights decides its greedy tokens by less than
the rounding of bf16, repeats itself, or hardly notices its experts, and then says nothing about the layer under test.
So the router is sharp, the experts write most of the residual stream, the size of an expert's answer varies strongly
(which spreads the logits), and only tokens of readable text can be produced.
"""

import json
from pathlib import Path

from safetensors.torch import save_file

from sglang_ascend_moe.launch.tiny_model.families import FAMILIES, Parts
from sglang_ascend_moe.launch.tiny_model.model_sizes import Init, TinySizes
from sglang_ascend_moe.launch.tiny_model.tokenizer import TURN_END, build_tokenizer, readable_ids, write_tokenizer
from sglang_ascend_moe.launch.tiny_model.weights import RandomTensors


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
    tensors = RandomTensors(seed)
    config = FAMILIES[family](Parts(sizes, init, tensors, readable_ids(tokenizer)))
    end = tokenizer.token_to_id(TURN_END)
    write_tokenizer(tokenizer, folder, sizes.max_positions)
    _write_json(folder / "config.json", {**config, "eos_token_id": end, "bos_token_id": None})
    _write_json(folder / "generation_config.json", {"eos_token_id": end, "do_sample": False})
    save_file(tensors.by_name, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
