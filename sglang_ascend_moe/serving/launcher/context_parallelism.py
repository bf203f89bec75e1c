"""Refusals of context parallelism (`--attn-cp-size`, `--enable-prefill-cp`): what cannot be, and what SGLang's models
and attention do not do, or do wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.serving.launcher.attention_groups import attention_groups

FUSED_ATTENTION = "ASCEND_USE_FIA"
"""SGLang's variable for the attention of grouped queries on NPUs that takes a part of a text."""


class Attention(NamedTuple):
    """Of the model: latent (MLA) or with grouped queries, and sparse (DSA) or not."""

    latent: bool
    sparse: bool


def refuse_context_flags(settings: Any, groups: int) -> None:
    """Raise `InvalidInput` for flags that do not go together, whatever the model is.

    settings: by the names that SGLang's server arguments have. groups: of data-parallel attention.
    """
    size = settings.attn_cp_size
    if size < 1 or settings.tp_size % (groups * size):
        each = f" and {groups} groups of attention" if groups > 1 else ""
        raise InvalidInput(
            f"--attn-cp-size {size} with --tp-size {settings.tp_size}{each}: choose one that divides"
            f" {settings.tp_size // groups}"
        )
    if settings.enable_prefill_cp and settings.cp_strategy is None:
        raise InvalidInput("--enable-prefill-cp: give --cp-strategy zigzag or interleave too")
    if size > 1 and settings.disaggregation_mode == "decode":
        raise InvalidInput(
            f"--attn-cp-size {size} with --disaggregation-mode decode: texts are divided where they are read; give it"
            " to the prefill instance only"
        )


def refuse_divided_prefill(
    settings: Any, attention: Attention, environment: Mapping[str, str], *, on_npu: bool
) -> None:
    """Raise `InvalidInput` or `Unsupported` if prefill cannot be divided so.

    settings: resolved, as above, with `--enable-prefill-cp`. environment: of the server's processes.
    """
    if settings.attn_cp_size == 1:
        raise InvalidInput("--enable-prefill-cp: give --attn-cp-size, of the ranks that divide a text, too")
    if not attention.latent and attention_groups(settings) > 1:
        raise Unsupported(
            "--enable-prefill-cp: SGLang does not divide the texts of a model with grouped queries within groups of"
            " data-parallel attention; use --attn-cp-size without --dp-size"
        )
    if on_npu and attention.latent and not attention.sparse:
        raise Unsupported(
            "--enable-prefill-cp: on NPUs SGLang's latent attention would see the keys of one rank only, but for models"
            " with sparse attention; leave it out"
        )
    if on_npu and not attention.latent and settings.cp_strategy != "zigzag":
        raise Unsupported(
            f"--cp-strategy {settings.cp_strategy}: SGLang's attention for NPUs divides the texts of this model in"
            " another way; use --cp-strategy zigzag"
        )
    if on_npu and not attention.latent and environment.get(FUSED_ATTENTION, "").lower() not in ("true", "1"):
        raise InvalidInput(
            f"--enable-prefill-cp: SGLang's attention for NPUs divides the texts of this model with {FUSED_ATTENTION}=1"
            " only; set it"
        )
