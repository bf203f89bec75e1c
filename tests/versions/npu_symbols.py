"""What our Python code for NPUs calls of other packages; `test_npu_contracts` holds it against their sources."""

from typing import NamedTuple


class Symbol(NamedTuple):
    """A function or class: `parameters` are those that our code gives, in its order."""

    distribution: str
    module: str
    name: str
    parameters: tuple[str, ...]


SYMBOLS = (
    Symbol("torch_npu", "torch_npu.npu", "mem_get_info", ("device",)),
    Symbol("torch_npu", "torch_npu._C", "_construct_storage_from_data_pointer", ("address", "device", "nbytes")),
    Symbol("torch_npu", "torch_npu._C", "_construct_NPU_Tensor_From_Storage_And_Metadata", ("metadata", "storage")),
    Symbol("torch_npu", "torch_npu.npu", "is_available", ()),
    Symbol("torch_npu", "torch_npu.npu", "get_device_name", ()),
    Symbol("memfabric-hybrid", "memfabric_hybrid", "get_lib_path", ()),
    Symbol("torch_npu", "torch_npu.npu", "current_device", ()),
    Symbol(
        "sglang", "sglang.srt.layers.moe.moe_runner.ascend", "AscendRunnerCore.run",
        ("runner_input", "quant_info", "running_state"),
    ),
    Symbol("sglang", "sglang.srt.layers.moe.moe_runner.ascend", "AscendQuantInfo", ()),
    Symbol(
        "sglang", "sglang.srt.layers.moe.moe_runner.ascend", "AscendRunnerInput",
        ("hidden_states", "hidden_states_scale", "expert_tokens", "group_list_type"),
    ),
    Symbol(
        "sglang", "sglang.srt.hardware_backend.npu.quantization.moe_methods",
        "NPUW8A8Int8MoEMethod.maybe_process_fuseep_weights", ("layer",),
    ),
    Symbol("sglang", "sglang.srt.hardware_backend.npu.quantization.moe_methods", "NPUUnquantMoEMethod", ()),
    Symbol(
        "sglang", "sglang.srt.hardware_backend.npu.quantization.moe_methods", "NPUW4A8Int8MoEMethod",
        ("is_per_channel_weight", "activation_use_clip"),
    ),
    Symbol(
        "sglang", "sglang.srt.hardware_backend.npu.moe.matmul", "GroupedMatmul.forward",
        ("layer", "weight_prefix", "hidden_states", "expert_tokens", "output_dtype", "group_list_type", "transposed"),
    ),
    Symbol("sglang", "sglang.srt.hardware_backend.npu.moe.activation", "NPUSwigluDeepEPKernel", ("need_quant",)),
)  # fmt: skip
