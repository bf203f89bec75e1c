"""The kernels of sgl_kernel_npu with which SGLang verifies sampled drafts."""


def missing_kernels() -> list[str]:
    """Those that this machine lacks."""
    from sglang.kernels.ops.sampling import renorm
    from sglang.kernels.ops.speculative import verify_sampling

    names = {"tree_speculative_sampling_target_only": verify_sampling}
    names |= dict.fromkeys(("top_k_renorm_prob", "top_p_renorm_prob"), renorm)
    return [name for name, module in names.items() if getattr(module, name) is None]
