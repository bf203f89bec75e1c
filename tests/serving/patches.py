"""Deliberate damage and observation, applied inside an engine's process before SGLang loads its plugins."""


def zero_moe_output() -> None:
    """Every sparse layer returns zeros in place of what its experts computed."""
    import torch
    from sglang.srt.layers.moe.fused_moe_triton.layer import FusedMoE

    forward = FusedMoE.forward

    def zeros(self, hidden_states, topk_output, **kwargs):
        return torch.zeros_like(forward(self, hidden_states, topk_output, **kwargs))

    FusedMoE.forward = zeros
