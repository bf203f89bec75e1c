"""A call of each operator that has shapes of its own, with as many tokens as asked, on any device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

EXPERTS, TOPK, HIDDEN, HEADS, WIDTH = 8, 2, 32, 4, 16


class Example(NamedTuple):
    """Arguments by name; every tensor is on the CPU."""

    operator: str
    arguments: dict[str, Any]


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(-127, 128, shape, generator=generator).to(dtype)


def examples(tokens: int) -> list[Example]:
    """One or more of every operator."""
    rows, logits = numbers(tokens, HIDDEN), numbers(tokens, EXPERTS, dtype=torch.float32)
    ids = torch.arange(tokens * TOPK, dtype=torch.int32).view(tokens, TOPK) % EXPERTS
    counts = torch.bincount(ids.flatten(), minlength=EXPERTS)
    routed = numbers(tokens * TOPK, HIDDEN)
    weights, quantised = numbers(EXPERTS, HIDDEN, 24), numbers(EXPERTS, HIDDEN, 24, dtype=torch.int8)
    route = {
        "active_num": tokens * TOPK, "expert_num": EXPERTS, "expert_tokens_num_type": 1,
        "expert_tokens_num_flag": True, "active_expert_range": [0, EXPERTS],
    }  # fmt: skip
    grouped = {"split_item": 2, "group_type": 0, "group_list": counts, "group_list_type": 1, "output_dtype": 15}
    turns = numbers(tokens, 1, 1, WIDTH)
    gating = {"k": TOPK, "k_group": 2, "group_count": 4, "group_select_mode": 1, "renorm": 1, "norm_type": 1}
    scales = numbers(tokens * TOPK, dtype=torch.float32).abs()
    return [
        Example("npu_rms_norm", {"input": rows, "gamma": numbers(HIDDEN)}),
        Example("npu_gemma_rms_norm", {"input": rows, "gamma": numbers(HIDDEN)}),
        Example("npu_add_rms_norm", {"x1": rows, "x2": rows, "gamma": numbers(HIDDEN)}),
        Example("npu_rotary_mul", {"input": numbers(1, tokens, HEADS, WIDTH), "r1": turns.view(1, tokens, 1, WIDTH),
                                   "r2": turns.view(1, tokens, 1, WIDTH)}),
        Example("npu_interleave_rope", {"x": numbers(tokens, HEADS, 1, WIDTH), "cos": turns, "sin": turns}),
        Example("npu_mrope", {"positions": torch.arange(tokens), "query": numbers(tokens, HEADS * WIDTH),
                              "key": numbers(tokens, WIDTH), "cos_sin_cache": numbers(64, WIDTH), "head_size": WIDTH,
                              "mrope_section": [0, 0, 0]}),
        Example("npu_kv_rmsnorm_rope_cache", {"kv": numbers(tokens, 1, 1, HIDDEN + WIDTH), "gamma": numbers(HIDDEN),
                                              "cos": turns, "sin": turns, "index": torch.arange(tokens),
                                              "k_cache": numbers(5, 4, 1, WIDTH), "ckv_cache": numbers(5, 4, 1, HIDDEN),
                                              "cache_mode": "PA_BNSD", "is_output_kv": True}),
        Example("npu_scatter_nd_update_", {"input": numbers(20, 1, WIDTH), "indices": torch.arange(tokens).view(-1, 1),
                                           "updates": numbers(tokens, 1, WIDTH)}),
        Example("npu_moe_gating_top_k_softmax", {"x": logits, "k": TOPK}),
        Example("npu_moe_gating_top_k", {"x": logits, "bias": numbers(EXPERTS, dtype=torch.float32), **gating}),
        Example("npu_moe_init_routing_v2", {"x": rows, "expert_idx": ids, "quant_mode": -1, **route}),
        Example("npu_moe_init_routing_v2", {"x": rows, "expert_idx": ids, "quant_mode": 1, **route}),
        Example("npu_moe_finalize_routing", {"expanded_permuted_rows": routed, "skip1": None, "skip2": None,
                                             "bias": None, "scales": numbers(tokens, TOPK),
                                             "expanded_src_to_dst_row": torch.arange(tokens * TOPK).int(),
                                             "export_for_source_row": ids, "drop_pad_mode": 2}),
        Example("npu_grouped_matmul", {"x": [routed], "weight": [weights], **grouped}),
        Example("npu_grouped_matmul", {"x": [routed], "weight": [weights], **grouped,
                                       "bias": [numbers(EXPERTS, 24, dtype=torch.float32)]}),
        Example("npu_grouped_matmul", {"x": [numbers(tokens * TOPK, HIDDEN, dtype=torch.int8)], "weight": [quantised],
                                       "scale": [numbers(EXPERTS, 24)], "per_token_scale": [scales], **grouped}),
        Example("npu_grouped_matmul", {"x": [numbers(tokens * TOPK, HIDDEN, dtype=torch.int8)],
                                       "weight": [numbers(EXPERTS, HIDDEN, 3, dtype=torch.int32)],
                                       "scale": [numbers(EXPERTS, 1, 24, dtype=torch.int64).abs()],
                                       "bias": [numbers(EXPERTS, 24, dtype=torch.float32)],
                                       "per_token_scale": [scales], **grouped}),
        Example("npu_swiglu", {"input": rows}),
        Example("npu_clipped_swiglu", {"x": routed, "group_index": counts, "alpha": 1.0, "limit": 0.5, "bias": 0.0,
                                       "interleaved": False}),
        Example("npu_dequant_swiglu_quant", {"x": rows, "activate_left": True, "quant_mode": 1}),
        Example("npu_dynamic_quant", {"input": rows, "dst_type": 1}),
        Example("npu_quant_matmul", {"x1": numbers(tokens, HIDDEN, dtype=torch.int8), "x2": quantised[0],
                                     "scale": numbers(24), "pertoken_scale": scales[:tokens], "output_dtype": 15}),
        Example("npu_top_k_top_p", {"logits": logits, "p": torch.full((tokens,), 0.9), "k": torch.full((tokens,), 3)}),
        Example("npu_transpose_batchmatmul", {"input": numbers(tokens, HEADS, WIDTH),
                                              "weight": numbers(HEADS, WIDTH, 24), "perm_x1": [1, 0, 2],
                                              "perm_x2": [0, 1, 2], "perm_y": [1, 0, 2]}),
        Example("npu_attention_update", {"lse": [numbers(tokens, dtype=torch.float32)] * 2,
                                         "local_out": [numbers(tokens, WIDTH, dtype=torch.float32)] * 2,
                                         "update_type": 0}),
        *attention_examples(tokens),
        *sparse_attention_examples(max(tokens, 1)),
    ]  # fmt: skip


def attention_examples(tokens: int) -> list[Example]:
    """Both versions, over pages, with and without logarithms."""
    table, ends = torch.zeros(tokens, 1, dtype=torch.int32), list(range(1, tokens + 1))
    cache, lengths = numbers(3, 4, 2 * WIDTH), [1] * tokens
    pages = {"key": cache, "value": cache, "block_table": table, "block_size": 4, "num_key_value_heads": 2}
    shapes = {
        "BSH": (tokens, 1, HEADS * WIDTH), "BSND": (tokens, 1, HEADS, WIDTH), "BNSD": (tokens, HEADS, 1, WIDTH),
        "TND": (tokens, HEADS, WIDTH), "NTD": (HEADS, tokens, WIDTH), "BNSD_BSND": (tokens, HEADS, 1, WIDTH),
        "BSH_BNSD": (tokens, 1, HEADS * WIDTH), "BSND_BNSD": (tokens, 1, HEADS, WIDTH),
        "NTD_TND": (HEADS, tokens, WIDTH), "TND_NTD": (tokens, HEADS, WIDTH),
    }  # fmt: skip
    found = []
    for layout, shape in shapes.items():
        for wanted in (False, True):
            common = {"query": numbers(*shape), "input_layout": layout, **pages}
            first = {"num_heads": HEADS, "actual_seq_lengths_kv": lengths, "softmax_lse_flag": wanted}
            second = {"num_query_heads": HEADS, "actual_seq_kvlen": lengths, "return_softmax_lse": wanted}
            if "T" in layout:
                first["actual_seq_lengths"] = second["actual_seq_qlen"] = ends
            found.append(Example("npu_fused_infer_attention_score", {**common, **first}))
            found.append(Example("npu_fused_infer_attention_score_v2", {**common, **second}))
    return found


def sparse_attention_examples(tokens: int) -> list[Example]:
    """The indexer, and attention over what it picked. Both refuse to be called without tokens."""
    pages = {"block_table": torch.zeros(tokens, 1, dtype=torch.int32), "layout_query": "TND", "sparse_mode": 3,
             "actual_seq_lengths_query": torch.arange(1, tokens + 1, dtype=torch.int32)}  # fmt: skip
    lengths, latent = torch.full((tokens,), 9, dtype=torch.int32), numbers(2, 16, 1, 512)
    return [
        Example("npu_lightning_indexer", {"query": numbers(tokens, HEADS, 128), "key": numbers(2, 16, 1, 128),
                                          "weights": numbers(tokens, HEADS), "layout_key": "PA_BSND", **pages,
                                          "actual_seq_lengths_key": lengths, "sparse_count": 6}),
        Example("npu_sparse_flash_attention", {"query": numbers(tokens, HEADS, 512), "key": latent, "value": latent,
                                               "query_rope": numbers(tokens, HEADS, 64), "attention_mode": 2,
                                               "key_rope": numbers(2, 16, 1, 64), "layout_kv": "PA_BSND", **pages,
                                               "sparse_indices": torch.arange(6).int().repeat(tokens, 1, 1),
                                               "scale_value": 0.1, "actual_seq_lengths_kv": lengths}),
    ]  # fmt: skip
