"""`torch_npu` and `sgl_kernel_npu` as modules: names that SGLang imports, each leading to an emulated operator.

What SGLang imports and these models never call is there as a function that is `NotEmulated`. The device, `torch.npu`,
is not made here; what SGLang asks of `torch_npu.npu` is taken from it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.npu.operators import (  # noqa: F401 - each declares its operators
    cache_writes,
    declaration,
    experts,
    fused_attention,
    normalisation,
    paged_attention,
    products,
    quantisation,
    rotation,
    routing,
    sampling,
    sgl_kernels,
    sparse_attention,
    speculation,
)
from tests.npu.operators.refusals import MissingName, NotEmulated

VERSION = "2.14.0"
"""Of the torch_npu whose schemas these are."""

# Imported beside what these models use: by SGLang from modules of sgl_kernel_npu, by transformers from torch_npu.
NOT_EMULATED = {
    "attention.sinks_attention": ("attention_sinks_prefill_triton", "attention_sinks_triton"),
    "kvcacheio": ("transfer_kv_dim_exchange",),
    "norm.add_rmsnorm_bias": ("add_gemma_rms_norm",),
    "sample": ("chain_speculative_sampling_triton",),
}
OF_TORCH_NPU = ("npu_fusion_attention",)


class TransferDirection(Enum):
    """Between the device and the memory of the host; SGLang imports it together with the function."""

    H2D = 1
    D2H = 2


def module(name: str, **contents: Any) -> ModuleType:
    """A module that is a package for those below it, and says what it lacks."""
    made = ModuleType(name, "Part of the emulated NPU: test equipment.")
    made.__spec__ = ModuleSpec(name, None, is_package=True)
    made.__path__ = []

    def missing(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise MissingName(f"{name}.{attribute}")

    vars(made).update(contents, __getattr__=missing)
    return made


def not_emulated(name: str) -> Callable[..., Any]:
    """A function that can be imported and not called."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise NotEmulated(name)

    return refuse


class Kernel:
    """A Triton kernel as it is launched, `kernel[grid](...)`."""

    def __init__(self, launch: Callable[..., None]) -> None:
        self._launch = launch

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch


def alloc_extend(
    pre_lens: Tensor, seq_lens: Tensor, last_loc: Tensor, free_page: Tensor, out_indices: Tensor,
    bs_upper: int, page_size: int, max_num_extend_tokens: int,
) -> None:  # fmt: skip
    """`bs_upper` and `max_num_extend_tokens` are sizes of the kernel's registers."""
    del bs_upper, max_num_extend_tokens
    torch.ops.sgl_kernel_npu.alloc_extend(pre_lens, seq_lens, last_loc, free_page, out_indices, page_size)


def fused_split_qk_norm(
    fused_qkv_a_proj_out: Tensor, q_a_layernorm: Any, kv_a_layernorm: Any,
    q_lora_rank: int, kv_lora_rank: int, qk_rope_dim: int, eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Takes the layers and hands on their weights."""
    return torch.ops.sgl_kernel_npu.fused_split_qk_norm(
        fused_qkv_a_proj_out, q_a_layernorm.weight, getattr(q_a_layernorm, "bias", None), kv_a_layernorm.weight,
        getattr(kv_a_layernorm, "bias", None), q_lora_rank, kv_lora_rank, qk_rope_dim, eps,
    )  # fmt: skip


def split_qkv_tp_rmsnorm_rope(
    input: Tensor,  # noqa: A002 - the real name
    cos: Tensor, sin: Tensor, q_hidden_size: int, kv_hidden_size: int, head_dim: int, eps: float,
    q_weight: Tensor, k_weight: Tensor, rotary_dim: int, tp_world: int, tp_group: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Norms over the heads of all `tp_world` ranks, whose mean squares are summed over the group."""
    kernels = torch.ops.sgl_kernel_npu
    mean_squares = kernels.split_qkv_mean_squares(input, q_hidden_size, kv_hidden_size)
    if len(input) and tp_world > 1:
        dist.all_reduce(mean_squares, group=tp_group)
    return kernels.split_qkv_norm_rope(
        input, mean_squares / tp_world, cos, sin, q_weight, k_weight, q_hidden_size, kv_hidden_size, head_dim,
        rotary_dim, eps,
    )  # fmt: skip


def situ_and_mul(x: Tensor, beta: float = 4.0, linear_beta: float | None = 25.0) -> Tensor:
    """The activation of all rows."""
    every = torch.full((1,), len(x), dtype=torch.int64, device=x.device)
    return torch.ops.sgl_kernel_npu.situ(x, every, 1, False, beta, linear_beta)[0]


def sgl_kernel_npu() -> dict[str, ModuleType]:
    """The modules of `sgl_kernel_npu` by name."""
    kernels = torch.ops.sgl_kernel_npu
    contents: dict[str, dict[str, Any]] = {
        "norm.l1_norm": {"l1_norm": kernels.l1_norm},
        "norm.fused_rope_qk_mqa": {"fused_rope_qk_mqa": kernels.fused_rope_qk_mqa},
        "norm.fused_split_qk_norm": {"fused_split_qk_norm": fused_split_qk_norm},
        "norm.split_qkv_rmsnorm_rope": {"split_qkv_rmsnorm_rope": kernels.split_qkv_rmsnorm_rope},
        "norm.split_qkv_tp_rmsnorm_rope": {"split_qkv_tp_rmsnorm_rope": split_qkv_tp_rmsnorm_rope},
        "activation.situ": {"situ": kernels.situ, "situ_and_mul": situ_and_mul},
        "activation.swiglu_oai": {"swiglu_oai_triton": kernels.swiglu_oai_triton},
        "activation.swiglu_quant": {"swiglu_quant": kernels.swiglu_quant},
        "mem_cache.allocator": {"alloc_extend_kernel": Kernel(alloc_extend)},
        "kvcacheio": {"TransferDirection": TransferDirection},
        "sample": {
            "top_k_renorm_prob": speculation.top_k_renorm_prob,
            "top_p_renorm_prob": speculation.top_p_renorm_prob,
            "tree_speculative_sampling_target_only": kernels.tree_speculative_sampling_target_only,
        },
        "sample.verify_tree_greedy": {"verify_tree_greedy": kernels.verify_tree_greedy},
    }
    for place, names in NOT_EMULATED.items():
        contents.setdefault(place, {}).update({name: not_emulated(f"{place}.{name}") for name in names})
    return packages("sgl_kernel_npu", contents)


def packages(root: str, contents: dict[str, dict[str, Any]], **own: Any) -> dict[str, ModuleType]:
    """Modules by name, with every package above them, each an attribute of the one above."""
    made = {root: module(root, **own)}
    for place, names in contents.items():
        above = root
        for part in place.split("."):
            name = f"{above}.{part}"
            if name not in made:
                made[name] = module(name)
                setattr(made[above], part, made[name])
            above = name
        vars(made[above]).update(names)
    return made


def apply_patches(patches: Iterable[tuple[str, Any]]) -> None:
    """Puts each object into torch under its dotted name, as torch_npu does."""
    for path, replacement in patches:
        *places, name = path.split(".")
        owner: Any = torch
        for place in places:
            owner = getattr(owner, place)
        setattr(owner, name, replacement)


def rebuild_npu_tensor(*_: Any) -> Tensor:
    """What another process would call for a tensor that is handed to it."""
    raise NotEmulated("torch_npu.multiprocessing.reductions.rebuild_npu_tensor")


def weak_reference(tensor: Tensor) -> Tensor:
    """The same values, whose memory may go to others."""
    return torch.ops.emulated_npu.weak_reference(tensor) if tensor.device.type == "npu" else tensor


def transfer_to_npu(attribute: str) -> ModuleType:
    """What `torch_npu.contrib` does when its module of this name is imported: names of torch.cuda are torch.npu's, and
    tensors of an NPU say that they are CUDA's."""
    if attribute != "transfer_to_npu":
        raise AttributeError(attribute)
    for name in set(vars(torch.npu)) & set(vars(torch.cuda)):
        if not name.startswith("__"):
            setattr(torch.cuda, name, getattr(torch.npu, name))
    torch.Tensor.is_cuda = torch.Tensor.is_npu
    return module("torch_npu.contrib.transfer_to_npu")


def profiler() -> dict[str, Any]:
    """torch's own profiler, which sees the CPU."""
    cpu, profile_of_torch = torch.profiler.ProfilerActivity.CPU, torch.profiler.profile

    def profile(activities: Iterable[Any], **named: Any) -> Any:
        # That of NPUs is the same here.
        return profile_of_torch(activities=set(activities), **named)

    return {
        "profile": profile,
        "ProfilerActivity": SimpleNamespace(CPU=cpu, NPU=cpu),
        "tensorboard_trace_handler": torch.profiler.tensorboard_trace_handler,
        # Of what torch's own has not.
        "_ExperimentalConfig": lambda **_of_npus: None,
        "ExportType": SimpleNamespace(Text="text"),
        "ProfilerLevel": SimpleNamespace(Level1="Level1"),
        "AiCMetrics": SimpleNamespace(PipeUtilization="PipeUtilization"),
    }


def torch_npu() -> dict[str, ModuleType]:
    """The modules of `torch_npu` by name; `torch_npu.npu` is `torch.npu` where there is one."""
    operators = {
        name.partition("::")[2].partition(".")[0]: getattr(torch.ops, name.partition("::")[0])
        for name in declaration.DECLARED
        if not name.startswith(("sgl_kernel_npu::", "custom::"))
    }
    own = {name: getattr(namespace, name) for name, namespace in operators.items()}
    options = SimpleNamespace(Options=SimpleNamespace)
    made = packages(
        "torch_npu",
        {
            "profiler": profiler(),
            "contrib": {"__getattr__": transfer_to_npu},
            "version": {"__version__": VERSION},
            "multiprocessing.reductions": {"rebuild_npu_tensor": rebuild_npu_tensor},
            "_C": {
                "_distributed_c10d": SimpleNamespace(ProcessGroupHCCL=options),
                "_weak_ref_tensor": weak_reference,
            },
        },
        __version__=VERSION,
        _apply_patches=apply_patches,
        **own,
        **{name: not_emulated(name) for name in OF_TORCH_NPU},
    )
    if hasattr(torch, "npu"):
        made["torch_npu"].npu = made["torch_npu.npu"] = torch.npu
    return made


def torchair() -> dict[str, ModuleType]:
    """The compiler, which SGLang names when it is imported; a model that is to be compiled is `NotEmulated`."""

    def get_npu_backend(*, compiler_config: Any) -> Callable[..., Any]:  # noqa: ARG001
        return not_emulated("torchair")

    return packages(
        "torchair",
        {
            "configs.compiler_config": {"CompilerConfig": lambda: SimpleNamespace(debug=SimpleNamespace())},
            "ge_concrete_graph.ge_converter.experimental.patch_for_hcom_allreduce": {},
        },
        get_npu_backend=get_npu_backend,
    )


def acl() -> dict[str, ModuleType]:
    """What SGLang asks CANN's own module: the architecture of the matrix units, that of A2 and A3."""
    return packages("acl", {"rt": {"get_device_info": lambda device, kind: (2201, 0)}})  # noqa: ARG005


def install_operators() -> None:
    """`torch.ops.npu`, `torch.ops.atb` and `sgl_kernel_npu` are there from now on in this process."""
    declaration.register()
    for name, made in sgl_kernel_npu().items():
        sys.modules.setdefault(name, made)


def install() -> None:
    """The same, and `torch_npu` with what is imported beside it. `torch.npu` has to be there before."""
    install_operators()
    for name, made in (torch_npu() | torchair() | acl() | {"custom_ops": module("custom_ops")}).items():
        sys.modules.setdefault(name, made)
