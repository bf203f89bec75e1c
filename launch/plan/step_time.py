"""The time of one step of a server, from the bytes and operations of its products, attention and exchange."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from sglang_ascend_moe.launch.plan.machine_times import Machine, Phase, Schedule, fixed_seconds
from sglang_ascend_moe.launch.plan.model_work import NUMBER_BYTES, ModelWork

BF16 = 2
"""Bytes of a number of activations, keys and values."""


class Placement(NamedTuple):
    """How one server divides a model. tp: ranks; dp: attention groups. weights: a key of `NUMBER_BYTES`.

    drafts: tokens that are verified besides the one that is written, for which as many draft layers run.
    """

    tp: int
    dp: int = 1
    weights: str = "bf16"
    drafts: int = 0

    @property
    def attention_ranks(self) -> int:
        return self.tp // self.dp

    @property
    def rows(self) -> str:
        """How rows travel: as the experts take them."""
        return "bf16" if self.weights == "bf16" else "int8"


class StepTime(NamedTuple):
    """Seconds of the slowest rank, one after the other: nothing is assumed to overlap."""

    products: float
    attention: float
    exchange: float
    collectives: float
    fixed: float

    @property
    def total(self) -> float:
        return sum(self)


class StepTimes(NamedTuple):
    """The times of the steps of one server."""

    work: ModelWork
    machine: Machine
    placement: Placement
    schedule: Schedule

    def decode(self, requests: int, context: float) -> StepTime:
        """Of a step that writes for `requests` requests of all groups, which have `context` tokens each so far.

        Latent attention multiplies what it keeps (`absorbed_width`): DeepSeek-V2, arXiv 2405.04434, section 2.1.2.
        """
        group = -(-requests // self.placement.dp)
        tokens = group * (1 + self.placement.drafts)
        pairs = tokens * context
        kept = group * context * self.work.sizes.layer_token_bytes(self.placement.attention_ranks)
        return self._step("decode", tokens, group, pairs * self.work.absorbed_width, kept)

    def prefill(self, tokens: int, prompts: int, context: float = 0.0) -> StepTime:
        """Of a step that reads `tokens` tokens of `prompts` prompts, of which `context` tokens each were read before.

        A prompt is read by one attention group: with fewer prompts than groups some have nothing. A causal mask leaves
        half of the new pairs (FlashAttention, arXiv 2205.14135).
        """
        used = min(self.placement.dp, prompts)
        group, length = tokens / used, tokens / prompts
        pairs = group * (context + length / 2)
        kept = prompts / used * (context + length) * self.work.sizes.layer_token_bytes(self.placement.attention_ranks)
        return self._step("prefill", group, max(1, round(prompts / used)), pairs * self.work.score_width, kept, used)

    def decode_seconds(self, requests: int, context: float) -> float:
        return self.decode(requests, context).total

    def prefill_seconds(self, tokens: int, prompts: int, context: float) -> float:
        return self.prefill(tokens, prompts, context).total

    def _step(
        self, phase: Phase, tokens: float, written: int, multiplied: float, kept: float, used: int | None = None
    ) -> StepTime:
        """tokens: of the busiest group. written: those of them whose logits are computed. multiplied: pairs of a query
        and a key times numbers, of one head. kept: bytes of keys and values that a rank reads. used: groups with
        tokens; None: all.

        Roofline (Williams et al., CACM 52(4), 2009): a product takes the longer of its operations and its bytes.
        """
        work, machine, place = self.work, self.machine, self.placement
        share, part = place.attention_ranks, machine.part(place.tp)
        groups = place.dp if used is None else used
        layers = work.sizes.layers + (place.drafts if phase == "decode" else 0)
        moe = layers - work.dense_layers
        rows = tokens * groups * work.topk / place.tp * (machine.imbalance if place.tp > 1 else 1.0)
        # Where ranks do not divide the experts, some experts are there twice.
        mean = ceil(work.experts / place.tp)
        touched = mean * (1 - (1 - work.topk / work.experts) ** (tokens * groups))
        products = layers * self._product(work.attention / share, tokens)
        products += work.dense_layers * self._product(work.dense / place.tp, tokens * groups)
        products += moe * self._product(work.expert * touched, rows / max(touched, 1e-9), expert=True)
        products += moe * (self._product(work.shared, tokens / share) if work.shared else 0.0)
        products += self._product(work.sizes.vocabulary * work.sizes.hidden / place.tp, written * groups, wide=True)
        # Two operations for a number: a multiplication and an addition.
        operations = 2 * multiplied * work.heads / share
        attention = layers * max(
            operations / (machine.products["bf16"] * machine.attention_part * part),
            kept / (machine.memory_rate * machine.memory_part * part),
        )
        hidden_bytes = tokens * work.sizes.hidden * BF16
        collectives = 0.0
        if share > 1:
            # Ring (Patarasuk and Yuan, JPDC 69(2), 2009): rows are gathered before attention and scattered after it.
            moved = 2 * hidden_bytes * (share - 1) / share
            collectives = layers * (2 * machine.link_us / 1e6 + moved / (machine.link_rate * part))
        exchanged = 0.0
        if place.tp > 1:
            brought = tokens / share * work.topk * work.sizes.hidden
            exchanged = moe * machine.exchange_seconds(
                self.schedule, phase, place.rows, place.tp, brought * (1 if place.rows == "int8" else 2),
                brought * BF16,
            ) * (machine.imbalance if phase == "prefill" else 1.0)  # fmt: skip
        fixed = sum(
            times * fixed_seconds(each, self.schedule, phase, place.tp)
            for each, times in ((machine.step_us, 1), (machine.layer_us, layers), (machine.token_us, tokens * groups))
        )
        return StepTime(products, attention, exchanged, collectives, fixed)

    def _product(self, numbers: float, tokens: float, *, expert: bool = False, wide: bool = False) -> float:
        """Seconds of a product of `tokens` rows with `numbers` weights. wide: that stay in bfloat16."""
        machine, kind = self.machine, "bf16" if wide else self.placement.weights
        part = machine.part(self.placement.tp)
        each = NUMBER_BYTES[kind].experts if expert else NUMBER_BYTES[kind].others
        operations = 2 * numbers * tokens
        return max(
            operations / (machine.products[kind] * machine.product_part * part),
            numbers * each / (machine.memory_rate * machine.memory_part * part),
        )


def handover_seconds(work: ModelWork, machine: Machine, tokens: int, attention_ranks: int) -> float:
    """Of the keys and values of `tokens` tokens, which the ranks of an attention group send to a decode server."""
    sent = tokens * work.sizes.layers * work.sizes.layer_token_bytes(attention_ranks)
    return machine.transfer_us / 1e6 + sent / machine.transfer_rate
