"""Drafts that are verified: trees of draft tokens, how far they are right, and where their keys are written.

A tree of a request holds its last token, as the root, and draft tokens. R requests, N tokens of a tree, S most tokens
of a path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.npu.operators.declaration import nothing, operator
from tests.npu.operators.refusals import NotEmulated, WrongArguments

FULL_MASK = 0
"""`tree_mask_mode`: each token has a row over the tokens before its tree and those of its tree."""

MOST_SLOTS = 16
"""Of a request in one `cache_loc_update`."""


def _require(operator_name: str, dtype: torch.dtype, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype is not dtype:
            raise WrongArguments(operator_name, f"{name} is {tensor.dtype}, not {dtype}")


def _out_cache_loc(out_cache_loc: Tensor) -> Tensor:
    return out_cache_loc


@operator("npu::cache_loc_update", shapes=_out_cache_loc)
def cache_loc_update(
    req_indices: Tensor, token_pool: Tensor, start_offset: Tensor, end_offset: Tensor, out_cache_loc: Tensor
) -> Tensor:
    """Slots of each request between its offsets, one request after the other, from its row of `token_pool`.

    Writes into `out_cache_loc`, though the schema does not say so.
    """
    _require("cache_loc_update", torch.int32, token_pool=token_pool, out_cache_loc=out_cache_loc)
    _require("cache_loc_update", torch.int64, start_offset=start_offset, end_offset=end_offset)
    taken = 0
    for request, start, end in zip(req_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        if end - start > MOST_SLOTS:
            raise WrongArguments("cache_loc_update", f"{end - start} slots of a request, more than {MOST_SLOTS}")
        out_cache_loc[taken : taken + end - start] = token_pool[request, start:end]
        taken += end - start
    return out_cache_loc


@operator("npu::build_tree_kernel_efficient", shapes=nothing)
def build_tree_kernel_efficient(
    parent_list: Tensor,
    selected_index: Tensor,
    verified_seq_len: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    topk: int,
    depth: int,
    draft_token_num: int,
    tree_mask_mode: int,
) -> None:
    """Mask, positions [R * N], and links [R, N] of every tree: where a token lies, its first child, its next sibling.

    selected_index [R, N - 1]: places of the draft tokens among all that were drafted, ascending. parent_list
    [R, topk * (depth - 1) + 1]: place of the token behind which `topk` at a time were drafted. Only the columns of the
    trees are written of the mask.
    """
    if tree_mask_mode != FULL_MASK:
        raise NotEmulated("build_tree_kernel_efficient", f"{tree_mask_mode=}")
    _require(
        "build_tree_kernel_efficient", torch.int64,
        parent_list=parent_list, selected_index=selected_index, verified_seq_len=verified_seq_len,
        positions=positions, retrive_index=retrive_index, retrive_next_token=retrive_next_token,
        retrive_next_sibling=retrive_next_sibling,
    )  # fmt: skip
    if depth > 1 and parent_list.shape[1] != topk * (depth - 1) + 1:
        raise WrongArguments("build_tree_kernel_efficient", f"parents {list(parent_list.shape)} for {topk=}, {depth=}")
    size = draft_token_num
    retrive_index.copy_(torch.arange(retrive_index.numel()).view_as(retrive_index))
    retrive_next_token.fill_(-1)
    retrive_next_sibling.fill_(-1)
    begun = 0
    trees = zip(parent_list.tolist(), selected_index.tolist(), verified_seq_len.tolist(), strict=True)
    for request, (parents, places, before) in enumerate(trees):
        columns = before + size
        mask = tree_mask[begun : begun + size * columns].view(size, columns)[:, before:]
        begun += size * columns
        mask.copy_(torch.eye(size, dtype=torch.bool))
        depths = [0] * size
        newest_child: dict[int, int] = {}
        mask[:, 0] = True
        for token, place in enumerate(places, start=1):
            group = place // topk
            parent = 0 if group == 0 else 1 + places.index(parents[group])
            mask[token] |= mask[parent]
            depths[token] = depths[parent] + 1
            if parent in newest_child:
                retrive_next_sibling[request, newest_child[parent]] = token
            else:
                retrive_next_token[request, parent] = token
            newest_child[parent] = token
        positions.view(-1, size)[request] = before + torch.tensor(depths)


@operator("sgl_kernel_npu::verify_tree_greedy", shapes=nothing)
def verify_tree_greedy(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,  # noqa: ARG001 - a chain needs no links
    retrive_next_sibling: Tensor,  # noqa: ARG001
    target_predict: Tensor,
) -> None:
    """Accepts tokens [R, N] as long as each is what the model, `target_predict` [R, N], puts behind the one before.

    Takes every tree for a chain, as the real one does. Written: accept_index [R, N] where the accepted tokens lie,
    accept_token_num [R] how many were drafted, predicts [R * N] what follows each accepted one.
    """
    if accept_index.shape != candidates.shape:
        raise NotEmulated("verify_tree_greedy", f"paths of {accept_index.shape[1]} in trees of {candidates.shape[1]}")
    rows = zip(candidates.tolist(), target_predict.tolist(), retrive_index.tolist(), strict=True)
    for request, (tokens, wanted, places) in enumerate(rows):
        drafted = 0
        while drafted + 1 < len(tokens) and tokens[drafted + 1] == wanted[drafted]:
            drafted += 1
        accepted = places[: drafted + 1]
        accept_index[request, : drafted + 1] = torch.tensor(accepted, dtype=accept_index.dtype)
        accept_token_num[request] = drafted
        predicts[accepted] = torch.tensor(wanted[: drafted + 1], dtype=predicts.dtype)


@operator("sgl_kernel_npu::tree_speculative_sampling_target_only", shapes=nothing)
def tree_speculative_sampling_target_only(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrive_index: Tensor,
    retrive_next_token: Tensor,
    retrive_next_sibling: Tensor,
    uniform_samples: Tensor,
    uniform_samples_for_final_sampling: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor,
    threshold_single: float,
    threshold_acc: float,
    deterministic: bool,  # noqa: ARG001 - there is no other way here
) -> None:
    """The same for tokens that are sampled, along trees; accept_index: [R, S].

    At each token of a path one number is drawn for all its children: the first is accepted up to which the sum of
    `target_probs` [R, N, vocabulary] reaches it. Without one the next token is sampled from the probabilities without
    those of the rejected children, which `draft_probs` holds afterwards.
    """
    draft_probs.zero_()
    for request in range(len(candidates)):
        token, drafted, place = 0, 0, int(retrive_index[request, 0])
        accept_index[request, 0] = place
        while drafted + 1 < accept_index.shape[1]:
            coin, reached = float(uniform_samples[request, token]), 0.0
            child = int(retrive_next_token[request, token])
            while child != -1:
                word = int(candidates[request, child])
                probability = float(target_probs[request, token, word])
                reached += probability
                if coin <= reached / max(threshold_acc, 1e-9) or probability >= threshold_single:
                    break
                draft_probs[request, token, word] = probability
                child = int(retrive_next_sibling[request, child])
            if child == -1:
                break
            predicts[place] = word
            token, drafted, place = child, drafted + 1, int(retrive_index[request, child])
            accept_index[request, drafted] = place
        accept_token_num[request] = drafted
        sums = (target_probs[request, token] - draft_probs[request, token]).clamp(min=0).cumsum(0)
        reach = float(uniform_samples_for_final_sampling[request]) * float(sums[-1])
        predicts[place] = min(int(torch.searchsorted(sums, reach, right=True)), len(sums) - 1)


def top_k_renorm_prob(probs: Tensor, top_ks: Tensor) -> Tensor:
    """Of each row the `top_ks` likeliest, to a sum of 1. In torch, as the real one is."""
    ordered, tokens = probs.sort(dim=-1, descending=True)
    ordered.masked_fill_(torch.arange(probs.shape[-1], device=probs.device)[None] >= top_ks[:, None], 0)
    return _to_sum_of_one(ordered, tokens)


def top_p_renorm_prob(probs: Tensor, top_ps: Tensor) -> Tensor:
    """Of each row the likeliest up to a sum of `top_ps`, to a sum of 1. In torch, as the real one is."""
    ordered, tokens = probs.sort(dim=-1, descending=True)
    ordered.masked_fill_(ordered.cumsum(dim=-1) - ordered > top_ps[:, None], 0)
    return _to_sum_of_one(ordered, tokens)


def _to_sum_of_one(ordered: Tensor, tokens: Tensor) -> Tensor:
    return torch.zeros_like(ordered).scatter_(-1, tokens, ordered / ordered.sum(dim=-1, keepdim=True))
