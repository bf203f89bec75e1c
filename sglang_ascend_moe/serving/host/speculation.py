"""Torch forms of the kernels with which SGLang drafts and verifies tokens; hooks of `host_hooks`.

A *tree* of a request holds its last token, as the root, and draft tokens; a chain is a tree without branches. Trees of
a batch have the same number of tokens each. Shapes: R requests, N tokens of a tree, S most tokens of a path.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NOTHING = -1
"""What stands for no token in the links of a tree."""

# Attention backends that attend over trees and draft branches on the host: SGLang's own and ours.
TREE_ATTENTION = ("torch_native", "ascend_moe_host")


def tree_mask_mode() -> Any:
    """In place of `default_tree_mask_mode`: a mask says what a token of a tree sees of its tree, [R, N, N]."""
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    return TreeMaskMode.QLEN_ONLY


def build_trees(
    parent_list: Tensor,
    top_scores_index: Tensor,
    seq_lens: Tensor,
    tree_mask: Tensor,
    positions: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    topk: int,
    spec_steps: int,  # noqa: ARG001
    num_verify_tokens: int,
    tree_mask_mode: Any,  # noqa: ARG001
) -> None:
    """In place of `build_tree_kernel_efficient_func`: writes mask, positions and links of every tree.

    top_scores_index: [R, N - 1] places of the draft tokens among all that were drafted, ascending. parent_list: [R,
    any] place of the token that `topk` drafts at a time follow. tree_mask: [R * N * N]; positions: [R * N]. retrieve_*,
    [R, N]: where a token lies in the batch, its first child, its next sibling.
    """
    requests, size = len(seq_lens), num_verify_tokens
    masks = tree_mask[: requests * size * size].view(requests, size, size).zero_()
    depths = torch.zeros(requests, size, dtype=positions.dtype)
    retrieve_index.copy_(torch.arange(requests * size).view(requests, size))
    for request, (parents, places) in enumerate(zip(parent_list.tolist(), top_scores_index.tolist(), strict=True)):
        mask, depth = masks[request], depths[request]
        first_child, next_sibling = retrieve_next_token[request], retrieve_next_sibling[request]
        mask[0, 0] = True
        newest: dict[int, int] = {}
        for token, place in enumerate(places, start=1):
            mask[token, token] = True
            entry = place // topk
            if entry and parents[entry] not in places:
                # As in SGLang's kernel nobody reaches a token whose parent was not kept. That happens if all scores are
                # alike: they are zero where no prefill instance has drafted.
                continue
            parent = 0 if entry == 0 else places.index(parents[entry]) + 1
            mask[token] |= mask[parent]
            depth[token] = depth[parent] + 1
            if parent in newest:
                next_sibling[newest[parent]] = token
            else:
                first_child[parent] = token
            newest[parent] = token
    positions.copy_((seq_lens[:, None] + depths).flatten())


def verify_greedily(
    predicts: Tensor,
    accept_index: Tensor,
    accept_token_num: Tensor,
    candidates: Tensor,
    retrieve_index: Tensor,
    retrieve_next_token: Tensor,
    retrieve_next_sibling: Tensor,
    target_predict: Tensor,
    topk: int = -1,  # noqa: ARG001 - SGLang's signature
) -> tuple[Tensor, Tensor, Tensor]:
    """In place of `verify_tree_greedy_func`: follows each tree as long as it says what the model says.

    candidates, target_predict: [R, N] the tokens of the trees, and what the model puts behind each. Written:
    accept_index [R, S] where the accepted tokens lie, accept_token_num [R] how many were drafted, predicts [R * N] what
    follows each accepted one.
    """
    trees = zip(
        candidates.tolist(),
        target_predict.tolist(),
        retrieve_next_token.tolist(),
        retrieve_next_sibling.tolist(),
        retrieve_index.tolist(),
        strict=True,
    )
    most = accept_index.shape[1]
    for request, (tokens, wanted, children, siblings, places) in enumerate(trees):
        path = [0]
        while len(path) < most:
            child = children[path[-1]]
            while child != NOTHING and tokens[child] != wanted[path[-1]]:
                child = siblings[child]
            if child == NOTHING:
                break
            path.append(child)
        accepted = [places[token] for token in path]
        _accept(accepted, [wanted[token] for token in path], predicts, accept_index[request], accept_token_num[request])
    return predicts, accept_index, accept_token_num


def keep_likeliest(probs: Tensor, top_ks: Tensor, /) -> Tensor:
    """In place of `top_k_renorm_prob`: of each row [rows, vocabulary] the `top_ks` [rows] likeliest, to a sum of 1."""
    ordered = probs.sort(dim=-1, descending=True).values
    least = ordered.gather(1, top_ks.long().clamp(max=probs.shape[1])[:, None] - 1)
    return _to_sum_of_one(probs.masked_fill(probs < least, 0))


def keep_nucleus(probs: Tensor, top_ps: Tensor, /) -> Tensor:
    """In place of `top_p_renorm_prob`: of each row the likeliest up to a sum of `top_ps` [rows], to a sum of 1."""
    ordered, tokens = probs.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered
    kept = ordered.masked_fill(before > top_ps[:, None], 0)
    return _to_sum_of_one(torch.zeros_like(probs).scatter_(1, tokens, kept))


def _to_sum_of_one(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=-1, keepdim=True)


def sample_along_trees(
    *,
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
    threshold_single: float = 1.0,
    threshold_acc: float = 1.0,
    **_: Any,
) -> None:
    """In place of `tree_speculative_sampling_target_only`: as `verify_greedily`, for tokens that are sampled.

    At each token of a path one number of `uniform_samples` [R, N] is drawn for all its children: the first is accepted
    up to which the sum of `target_probs` [R, N, vocabulary] reaches it. Without one the next token is sampled, from
    what is left of the probabilities, by `uniform_samples_for_final_sampling` [R].
    """
    trees = zip(
        candidates.tolist(),
        retrive_next_token.tolist(),
        retrive_next_sibling.tolist(),
        retrive_index.tolist(),
        uniform_samples.tolist(),
        strict=True,
    )
    most = accept_index.shape[1]
    for request, (tokens, children, siblings, places, coins) in enumerate(trees):
        path = [0]
        rejected: list[int] = []
        while len(path) < most:
            child, reached, rejected = children[path[-1]], 0.0, []
            while child != NOTHING:
                probability = float(target_probs[request, path[-1], tokens[child]])
                reached += probability
                if coins[path[-1]] <= reached / threshold_acc or probability >= threshold_single:
                    break
                rejected.append(tokens[child])
                child = siblings[child]
            if child == NOTHING:
                break
            path.append(child)
            rejected = []
        left = target_probs[request, path[-1]].clone()
        left[rejected] = 0
        sums = left.cumsum(0)
        reach = float(uniform_samples_for_final_sampling[request]) * float(sums[-1])
        last = min(int(torch.searchsorted(sums, reach, right=True)), len(sums) - 1)
        accepted = [places[token] for token in path]
        following = [tokens[token] for token in path[1:]] + [last]
        _accept(accepted, following, predicts, accept_index[request], accept_token_num[request])


def _accept(accepted: list[int], following: list[int], predicts: Tensor, index: Tensor, drafted: Tensor) -> None:
    """Write of one request where its accepted tokens lie, the root first, and what follows each of them.

    index: [S], its row of `accept_index`; drafted: its place in `accept_token_num`.
    """
    index[: len(accepted)] = torch.tensor(accepted, dtype=index.dtype)
    drafted.fill_(len(accepted) - 1)
    predicts[accepted] = torch.tensor(following, dtype=predicts.dtype)


def draft_places(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    seq_lens: Tensor,
    out_cache_loc: Tensor,
    topk: int,
    num_cols: int,
    positions: Tensor | None = None,
    mrope: Tensor | None = None,  # noqa: ARG001 - SGLang's signature; for accelerators
) -> None:
    """In place of `assign_draft_cache_locs_contiguous_func`: where a draft writes its keys.

    out_cache_loc [R * topk * num_cols] gets as many slots of each request from its end on.
    """
    out_cache_loc.copy_(_slots_from(req_to_token, req_pool_indices, seq_lens, topk * num_cols).flatten())
    if positions is not None:
        positions.copy_(seq_lens.repeat_interleave(topk))


def verified_places(
    *,
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    draft_token_num: int,
    **_: Any,
) -> Tensor:
    """SGLang's `assign_extend_cache_locs_func`: where the keys of the trees are written, [R * N] int64."""
    return _slots_from(req_to_token, req_pool_indices, start_offset, draft_token_num).flatten().long()


def _slots_from(table: Tensor, requests: Tensor, starts: Tensor, count: int) -> Tensor:
    """`count` slots of each request from `starts` on, [R, count]."""
    columns = starts[:, None] + torch.arange(count)
    return table[requests.long()[:, None], columns]


def reserve_places(
    req_pool_indices: Tensor,
    req_to_token: Tensor,
    start_offset: Tensor,
    end_offset: Tensor,
    out_cache_loc: Tensor,
    batch_size: int,  # noqa: ARG001 - SGLang's signature
) -> None:
    """In place of `assign_req_to_token_pool_func`: slots `out_cache_loc` become those of requests between offsets."""
    taken = 0
    rows = zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True)
    for request, start, end in rows:
        req_to_token[request, start:end] = out_cache_loc[taken : taken + end - start]
        taken += end - start


def leading_places(num_front: Tensor, out_cache_loc: Tensor, front_out_cache_loc: Tensor) -> None:
    """In place of `fill_front_out_cache_loc_func`: the first `num_front` slots of each request, one after the other."""
    slots = out_cache_loc.view(len(num_front), -1)
    leading = slots[torch.arange(slots.shape[1])[None] < num_front[:, None]]
    front_out_cache_loc[: len(leading)] = leading


def accepted_places(accept_index: Tensor, out_cache_loc: Tensor, accept_out_cache_loc: Tensor, size: int) -> None:
    """In place of `fill_accept_out_cache_loc_func`: the slots of accepted tokens, one after the other."""
    indices = accept_index.flatten()[:size]
    accepted = out_cache_loc[indices[indices != NOTHING].long()]
    accept_out_cache_loc[: len(accepted)] = accepted


def last_tokens(
    accept_tokens: Tensor, accept_lens: Tensor, bonus_tokens: Tensor, accept_stride: int, batch_size: int
) -> None:
    """In place of `fill_bonus_tokens_func`: the last accepted token of each request."""
    tokens = accept_tokens.view(batch_size, accept_stride)
    bonus_tokens.copy_(tokens.gather(1, accept_lens.long()[:, None] - 1).flatten())


def choose_branches(original: Callable[..., Any], *arguments: Any) -> Any:
    """Around `_select_top_k_tokens_later`: as it is written, and not compiled in every process."""
    return inspect.unwrap(original)(*arguments)


def prepare_draft_model(original: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
    """Around `BaseSpecWorker.alloc_memory_pool`: draft models wait for CUDA when they get the model's embedding."""
    wait = torch.cuda.synchronize
    torch.cuda.synchronize = lambda *_: None
    try:
        original(*arguments, **keywords)
    finally:
        torch.cuda.synchronize = wait


def move_natively(pool: Any) -> None:
    """In place of `MHATokenToKVPool._init_kv_copy_and_warmup`: accepted keys and values are moved without a kernel."""
    pool.use_native_move_kv_cache, pool._kv_copy_config = True, None


def draft_attention(original: Callable[..., Any], factory: Any) -> Any:
    """Around `DraftBackendFactory.create_decode_backend`, which knows no backend of the host."""
    if not _attends_over_trees() or factory.speculative_num_steps <= 1:
        return original(factory)
    from sglang_ascend_moe.serving.host.tree_attention import DraftAttention

    return DraftAttention(factory.draft_model_runner, factory.topk, factory.speculative_num_steps)


def draft_extend_attention(original: Callable[..., Any], factory: Any) -> Any:
    """Around `DraftBackendFactory.create_draft_extend_backend`: that of the draft model itself."""
    return None if _attends_over_trees() else original(factory)


def _attends_over_trees() -> bool:
    from sglang.srt.runtime_context import attention_backends

    return set(attention_backends()) <= set(TREE_ATTENTION)
