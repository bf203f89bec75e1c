"""Names of what `build_cann` makes, in a module that needs neither torch nor our package: torch's import reads it."""

CANN = "libemulated_cann.so"
MEMFABRIC = "libmf_smem.so"
KERNELS_LIBRARY = "_ascend_kernels.so"
TORCH_LIBRARY = "_ascend_torch.so"
