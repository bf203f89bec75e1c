"""The entry point of SGLang's plugin group, and the one table of everything that is changed in SGLang."""

from sglang_ascend_moe import arguments, hooks, layer
from sglang_ascend_moe.hooks import Hook, Kind, Process, Where
from sglang_ascend_moe.platforms import host_fixes, shared_memory_names

SRT = "sglang.srt"

TABLE: tuple[Hook, ...] = (
    Hook(
        f"{SRT}.server_args.ServerArgs.add_cli_args",
        Kind.AFTER,
        arguments.add_flags_to_parser,
        "the command line has to know the --ascend-moe flags",
        process=Process.LAUNCHER,
    ),
    Hook(
        f"{SRT}.server_args.ServerArgs.from_cli_args",
        Kind.AFTER,
        arguments.attach_parsed_options,
        "the options have to ride to the workers on the server arguments",
        process=Process.LAUNCHER,
    ),
    Hook(
        f"{SRT}.entrypoints.engine.Engine.server_args_class",
        Kind.SET,
        staticmethod(arguments.engine_server_args),
        "sglang.Engine has to accept the ascend_moe keyword arguments, and loads plugins only inside its constructor",
        process=Process.LAUNCHER,
    ),
    Hook(
        f"{SRT}.server_args.ServerArgs.resolve_once",
        Kind.AROUND,
        arguments.resolve_once,
        "the MoE backend has to be chosen, and unsupported settings refused, before workers start",
        process=Process.LAUNCHER,
    ),
    Hook(
        f"{SRT}.entrypoints.engine._wait_for_scheduler_ready",
        Kind.AFTER,
        arguments.require_ready_workers,
        "a worker in which the plugin did not load must not serve with another MoE layer",
        process=Process.LAUNCHER,
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.get_init_info",
        Kind.AFTER,
        layer.report_ready,
        "the launcher has to learn that the exchange of a worker is open",
        process=Process.WORKER,
    ),
    Hook(
        f"{SRT}.managers.data_parallel_controller.DataParallelController.get_init_info",
        Kind.AFTER,
        layer.report_all_ready,
        "with data-parallel attention the launcher hears from the controller only",
        process=Process.WORKER,
    ),
    Hook(
        f"{SRT}.model_executor.model_runner.ModelRunner.load_model",
        Kind.BEFORE,
        layer.check_before_model,
        "a worker in which a hook is missing has to stop before it builds the model",
        process=Process.WORKER,
    ),
    Hook(
        f"{SRT}.model_executor.model_runner.ModelRunner.alloc_memory_pool",
        Kind.AFTER,
        layer.open_exchanges,
        "windows have to exist on all ranks, sized for the scheduler's limits, before the first forward pass",
        process=Process.WORKER,
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.moe.fuseep.forward_fuseep",
        Kind.AROUND,
        layer.forward,
        "this function is the whole MoE layer of the backend that --ascend-moe chooses",
        process=Process.WORKER,
    ),
    Hook(
        f"{SRT}.utils.numa_utils.init_threads_binding",
        Kind.AROUND,
        host_fixes.cores_of_rank,
        "without SGLANG_CPU_OMP_THREADS_BIND SGLang refuses more ranks than NUMA nodes",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.distributed.bootstrap._init_cpu_threads_env",
        Kind.REPLACE,
        host_fixes.limit_threads,
        "SGLang binds threads with a kernel that its PyPI build lacks, and ranks must not oversubscribe the cores",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.utils.common.is_shm_available",
        Kind.REPLACE,
        host_fixes.no_shared_memory_all_reduce,
        "on aarch64 SGLang assumes a shared-memory all-reduce kernel that its PyPI build lacks",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.model_executor.forward_batch_info._is_cpu",
        Kind.SET,
        True,
        "batches that are padded across ranks would be copied through pinned memory, which needs an accelerator",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.layers.attention.torch_native_backend.TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value",
        Kind.ADD,
        host_fixes.padded_sequence_length,
        "padded decode rows need a sequence length, and the torch_native backend names none",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.distributed.parallel_state.reg_reduce_scatter_tensor",
        Kind.REPLACE,
        host_fixes.reduce_scatter_tensor,
        "for an out-of-tree platform SGLang registers this operator for PrivateUse1 tensors only",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.distributed.parallel_state.reg_all_gather_into_tensor",
        Kind.REPLACE,
        host_fixes.all_gather_into_tensor,
        "for an out-of-tree platform SGLang registers this operator for PrivateUse1 tensors only",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.layers.dp_attention.memcpy_func",
        Kind.REPLACE,
        host_fixes.copy_rows,
        "for an out-of-tree platform SGLang copies the rows of data-parallel attention with a Triton kernel",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.distributed.device_communicators.shm_broadcast.MessageQueue.create_from_process_group",
        Kind.AFTER,
        shared_memory_names.unname_queue,
        "25 MB in /dev/shm would stay behind every server, because SGLang ends its processes with SIGKILL",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.managers.data_parallel_controller.DataParallelController.__init__",
        Kind.AFTER,
        shared_memory_names.map_load_reports,
        "the controller has to map the load reports before their name in /dev/shm goes",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.entrypoints.engine.Engine._set_startup_time",
        Kind.AFTER,
        shared_memory_names.unname_load_reports,
        "the file of the load reports in /dev/shm would stay behind every server",
        Where.HOST,
        Process.LAUNCHER,
    ),
    Hook(
        f"{SRT}.managers.scheduler.configure_scheduler_process",
        Kind.BEFORE,
        shared_memory_names.share_no_progress_bars,
        "a semaphore in /dev/shm would stay behind every scheduler that shows a progress bar",
        Where.HOST,
        Process.WORKER,
    ),
    Hook(
        f"{SRT}.managers.tokenizer_manager.TokenizerManager.dump_requests_before_crash",
        Kind.AROUND,
        host_fixes.dump_without_core_dumps,
        "after a crash SGLang waits over a minute for core dumps of GPUs that do not exist",
        Where.HOST,
        Process.LAUNCHER,
    ),
)


def register() -> None:
    """Entry point of the group `sglang.srt.plugins`; called in every process of a server."""
    hooks.install(TABLE)
