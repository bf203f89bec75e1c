"""The tiny checkpoint is always the same, and a fair subject for tests of routing."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from sglang_ascend_moe.launch.tiny_model.checkpoint import TinySizes, write_checkpoint
from sglang_ascend_moe.launch.tiny_model.families import FAMILIES
from sglang_ascend_moe.launch.tiny_model.model_sizes import FAMILY_NAMES
from sglang_ascend_moe.launch.tiny_model.tokenizer import build_tokenizer, readable_ids
from sglang_ascend_moe.serving.launcher.exit_codes import INTERRUPTED


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_another_process_writes_the_same_bytes(checkpoint, tmp_path):
    command = [sys.executable, "-m", "sglang_ascend_moe.launch.tiny_model", str(tmp_path)]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True, timeout=120)
    assert digests(tmp_path) == digests(checkpoint)


def test_the_command_knows_every_family():
    assert tuple(FAMILIES) == FAMILY_NAMES


@pytest.mark.nightly
def test_an_interrupt_while_torch_is_imported_is_said_in_one_line(tmp_path):
    command = [sys.executable, "-m", "sglang_ascend_moe.launch.tiny_model", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as writing:
        while "libtorch_cpu" not in Path(f"/proc/{writing.pid}/maps").read_text():
            assert writing.poll() is None
        writing.send_signal(signal.SIGINT)
        _, said = writing.communicate(timeout=60)
    assert (writing.returncode, said) == (INTERRUPTED, f"{' '.join(['python', *command[1:3]])}: interrupted\n")


def test_the_seed_changes_every_random_weight(checkpoint, tmp_path):
    write_checkpoint(tmp_path, seed=1)
    ours, theirs = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert [name for name in ours if "norm" not in name and torch.equal(ours[name], theirs[name])] == []


def test_it_is_a_sparse_model_in_bfloat16(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    assert (config["num_hidden_layers"], config["num_experts"], config["num_experts_per_tok"]) == (4, 16, 4)
    tensors = load_file(checkpoint / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    experts = {tuple(name.split(".")[2:6:3]) for name in tensors if ".experts." in name}
    assert len(experts) == 4 * 16


def test_routing_depends_on_the_token(checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    rows = tensors["model.embed_tokens.weight"].float()
    rows = rows / rows.square().mean(-1, keepdim=True).sqrt()
    chosen = (rows @ tensors["model.layers.0.mlp.gate.weight"].float().T).topk(TinySizes().topk).indices
    assert len({tuple(sorted(row)) for row in chosen.tolist()}) > 300
    share = chosen.flatten().bincount(minlength=TinySizes().experts) / chosen.numel()
    assert share.min() > 0.01


@pytest.mark.parametrize("text", ["The experts read a row.\n", "x = [1, 2]\t# Größe, 数", "<|im_start|>user"])
def test_the_tokenizer_gives_the_text_back(checkpoint, text):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text) == build_tokenizer(TinySizes().vocab).encode(text).ids


def test_the_chat_template_marks_turns(checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": "Who?"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"


def test_only_readable_tokens_can_be_produced(checkpoint):
    head = load_file(checkpoint / "model.safetensors")["lm_head.weight"]
    producible = head.abs().sum(-1).nonzero().flatten().tolist()
    assert producible == readable_ids(build_tokenizer(TinySizes().vocab))
