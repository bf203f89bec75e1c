"""The last product of experts on an NPU writes its result into the window. No NPU has run this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sglang_ascend_moe.native import device_session


class ProductIntoWindow:
    """In the kernel of a layer's second product, where SGLang's `GroupedMatmul` was."""

    def __init__(self, original: Any) -> None:
        self._original = original
        self.place: Tensor | None = None
        """[rows, hidden] of the window, while the experts of a layer run."""

    def forward(
        self,
        layer: Any,
        weight_prefix: str,
        hidden_states: Tensor,
        expert_tokens: Tensor,
        output_dtype: Any,
        group_list_type: int,
        transposed: bool,
        *,
        bias: Sequence[Tensor] = (),
        scale: Sequence[Tensor] = (),
        per_token_scale: Sequence[Tensor] = (),
    ) -> Tensor:
        """As that of `GroupedMatmul`, with the result in `place`; rows past the counts keep what they hold.

        expert_tokens: counts. float16 results of W8A8 weights are made in bfloat16, and copied: CANN makes no others
        with scales of channels in bfloat16, in which SGLang keeps these.
        """
        place = self.place
        of_four_bits = bool(scale) and not scale[0].is_floating_point()
        if place is None or (place.dtype != output_dtype and not of_four_bits):
            given = {"bias": bias, "scale": scale, "per_token_scale": per_token_scale}
            made: Tensor = self._original.forward(
                layer, weight_prefix, hidden_states, expert_tokens, output_dtype, group_list_type, transposed,
                **{name: value for name, value in given.items() if value},
            )  # fmt: skip
            return made if place is None else place.copy_(made)
        weight = getattr(layer, f"{weight_prefix}_weight")
        device_session.torch_streams().grouped_product(
            hidden_states,
            weight if transposed else weight.transpose(1, 2),
            _only(bias),
            _only(scale),
            _only(per_token_scale),
            expert_tokens,
            place,
        )
        return place


def _only(given: Sequence[Tensor]) -> Tensor | None:
    return given[0] if given else None
