"""What a server will need is told by the configuration of its model, before anything is loaded."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sglang_ascend_moe.launch.tiny_model.checkpoint import write_checkpoint
from sglang_ascend_moe.serving.host.server_estimate import ModelSizes, ServerSizes, estimate_server, model_sizes
from sglang_ascend_moe.serving.options import Options

DENSE = {
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4, "hidden_size": 256, "vocab_size": 1000,
    "max_position_embeddings": 2048, "torch_dtype": "bfloat16", "num_experts": 16, "num_experts_per_tok": 4,
}  # fmt: skip


def sizes(folder: Path = Path(), **changed: object) -> ModelSizes:
    found = model_sizes(folder, {**DENSE, **changed}.get)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("changed", "ranks", "numbers"),
    [
        ({}, 1, 2 * 4 * 32),
        ({}, 2, 2 * 2 * 32),
        ({}, 8, 2 * 1 * 32),
        ({"head_dim": 128}, 2, 2 * 2 * 128),
        ({"num_key_value_heads": None}, 2, 2 * 4 * 32),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, 4, 576),
    ],
    ids=["one rank", "two ranks", "more ranks than heads", "wide heads", "no grouped heads", "latent attention"],
)
def test_a_token_takes_keys_and_values_of_the_heads_of_a_rank(changed, ranks, numbers):
    assert sizes(**changed).layer_token_bytes(ranks) == 2 * numbers


def test_dtype_and_context_of_the_flags_go_before_those_of_the_config():
    found = model_sizes(Path(), DENSE.get, dtype="float32", context=100)
    assert (found.element_bytes, found.context) == (4, 100)


@pytest.mark.parametrize("missing", ["num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings"])
def test_a_config_that_does_not_say_its_sizes_gives_none(missing):
    assert model_sizes(Path(), {**DENSE, missing: None}.get) is None


def test_attention_groups_share_the_requests_of_a_server():
    one = estimate_server(sizes(), ServerSizes(tp=4), Options())
    groups = estimate_server(sizes(), ServerSizes(tp=4, attention_groups=4), Options())
    assert groups.scheduling.running * 4 == one.scheduling.running
    assert groups.token == 4 * one.token


def test_a_draft_model_counts_with_its_layer_its_weights_and_all_tokens_of_its_trees(tmp_path: Path):
    target, draft = (write_checkpoint(tmp_path / name) for name in ("target", "draft"))
    model = model_sizes(target, json.loads((target / "config.json").read_text()).get)
    alone, drafted = (
        estimate_server(
            model, ServerSizes(tp=2, prefill_tokens=64, request_tokens=tokens, draft_folder=folder), Options()
        )
        for tokens, folder in ((1, None), (3, draft))
    )
    assert drafted.weights == 2 * alone.weights
    assert drafted.token * model.layers == alone.token * (model.layers + 1)
    assert drafted.scheduling.logits == 3 * alone.scheduling.logits
    assert drafted.needs.windows > 2 * alone.needs.windows
    assert drafted.needs.graphs == 3 * alone.needs.graphs


def test_windows_are_those_of_the_exchange_and_none_without_it():
    server = ServerSizes(tp=2, prefill_tokens=4096)
    windows = {
        name: estimate_server(sizes(), server, options).needs.windows
        for name, options in {
            "ours": Options(), "smaller": Options(window_bytes=2**22), "collective": Options(schedule="collective"),
            "stock": None, "refused": Options(window_bytes=2**16),
        }.items()
    }  # fmt: skip
    # Two ranks, 2,048 tokens of each, four rows of 512 bytes in and out.
    assert 2 * 2048 * 4 * 512 * 2 < windows["ours"] < 2 * 2048 * 4 * 512 * 2 + 2**20
    assert 2**21 < windows["smaller"] <= 2**22
    assert (windows["collective"], windows["stock"], windows["refused"]) == (0, 0, 0)


@pytest.mark.parametrize("factor", [None, 3.0], ids=["default", "three"])
def test_windows_of_many_ranks_hold_what_nearly_balanced_batches_need(factor: float | None):
    server = ServerSizes(tp=8, prefill_tokens=2**17)
    needs = estimate_server(sizes(), server, Options(window_factor=factor)).needs
    # 16,384 tokens of each rank, four rows of 512 bytes in and out.
    rows = (factor or 2) * 2**14 * 4 * 512 * 2
    assert rows < needs.windows < rows + 2**20


@pytest.mark.parametrize(
    ("batch", "gathered"), [(0, 0), (4, 4), (10**6, 256), (None, 256)], ids=["no graphs", "small", "all", "left to us"]
)
def test_graphs_take_what_the_largest_batch_gathers(batch: int | None, gathered: int):
    needs = estimate_server(sizes(), ServerSizes(tp=2, running=256, graph_batch=batch), Options()).needs
    assert needs.graphs == gathered * 2048 * sizes().layer_token_bytes(2)


def test_replicas_count_every_model(tmp_path: Path):
    write_checkpoint(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    model = model_sizes(tmp_path, config.get)
    one = estimate_server(model, ServerSizes(tp=2), None)
    two = estimate_server(model, ServerSizes(tp=2, replicas=2), None)
    assert (two.ranks, two.weights) == (4, 2 * one.weights)


def test_the_estimate_imports_neither_torch_nor_sglang():
    module = "sglang_ascend_moe.serving.host.server_estimate"
    code = f"import sys, {module}; print(sorted({{'torch', 'sglang'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stdout.strip()) == (0, "[]"), result.stderr


def test_stages_have_a_part_of_the_layers_and_of_the_requests_of_a_batch_each():
    one = estimate_server(sizes(), ServerSizes(tp=2, prefill_tokens=1), Options())
    two = estimate_server(sizes(), ServerSizes(tp=2, stages=2, prefill_tokens=1), Options())
    three = estimate_server(sizes(), ServerSizes(tp=2, stages=3, prefill_tokens=1), Options())
    assert (one.ranks, two.ranks, three.ranks) == (2, 4, 6)
    # Of four layers the stage with most has two.
    assert one.token == 2 * two.token == 2 * three.token
    assert one.scheduling == two.scheduling
    assert one.needs.windows > two.needs.windows > three.needs.windows > 0
    asked = estimate_server(sizes(), ServerSizes(tp=2, stages=2, prefill_tokens=1, micro_batch=256), Options())
    assert asked.needs == one.needs
