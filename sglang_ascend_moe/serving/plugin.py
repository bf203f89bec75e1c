"""The entry point of SGLang's plugin group, and the one table of everything that is changed in SGLang."""

from sglang_ascend_moe.graph_capture.runners import host_decode, npu_runner
from sglang_ascend_moe.serving import hooks
from sglang_ascend_moe.serving.hooks import Hook, Kind, Where, host_hook, host_launcher_hook, launcher_hook
from sglang_ascend_moe.serving.host import fixes, models, process_start, recorder, unnamed_memory
from sglang_ascend_moe.serving.host.memory import HOOKS as MEMORY_HOOKS
from sglang_ascend_moe.serving.launcher import arguments
from sglang_ascend_moe.serving.launcher.ending import HOOKS as ENDING_HOOKS
from sglang_ascend_moe.serving.launcher.request_checks import HOOKS as REQUEST_HOOKS
from sglang_ascend_moe.serving.npu.experts import keep_weights
from sglang_ascend_moe.serving.worker import expert_location, layer, live_state, metrics, pairing
from sglang_ascend_moe.serving.worker.deep_ep_client import HOOKS as DEEP_EP_HOOKS
from sglang_ascend_moe.serving.worker.transfer_rooms import HOOKS as TRANSFER_HOOKS

SRT = "sglang.srt"


TABLE: tuple[Hook, ...] = (
    launcher_hook(
        f"{SRT}.server_args.ServerArgs.add_cli_args",
        Kind.AFTER,
        arguments.add_flags_to_parser,
        "the command line has to know the --ascend-moe flags",
    ),
    launcher_hook(
        f"{SRT}.server_args.ServerArgs.from_cli_args",
        Kind.AFTER,
        arguments.attach_parsed_options,
        "the options have to ride to the workers on the server arguments",
    ),
    launcher_hook(
        f"{SRT}.entrypoints.engine.Engine.server_args_class",
        Kind.SET,
        staticmethod(arguments.engine_server_args),
        "sglang.Engine has to accept the ascend_moe keyword arguments, and loads plugins only inside its constructor",
    ),
    launcher_hook(
        f"{SRT}.server_args.ServerArgs.resolve_once",
        Kind.AROUND,
        arguments.resolve_once,
        "the MoE backend has to be chosen, and unsupported settings refused, before workers start",
    ),
    launcher_hook(
        f"{SRT}.server_args.ServerArgs.check_server_args",
        Kind.AROUND,
        arguments.check_server_args,
        "what SGLang refuses of a command line would be a traceback",
    ),
    launcher_hook(
        f"{SRT}.entrypoints.engine._wait_for_scheduler_ready",
        Kind.AFTER,
        arguments.require_ready_workers,
        "a worker in which the plugin did not load must not serve with another MoE layer",
    ),
    *ENDING_HOOKS,
    *(
        Hook(
            f"{SRT}.managers.{process}.get_init_info",
            Kind.AFTER,
            function,
            "the launcher has to learn that exchanges are open, with data-parallel attention from the controller only",
        )
        for process, function in (
            ("scheduler.Scheduler", layer.report_ready),
            ("data_parallel_controller.DataParallelController", layer.report_all_ready),
        )
    ),
    Hook(
        f"{SRT}.model_executor.model_runner.ModelRunner.load_model",
        Kind.BEFORE,
        layer.check_before_model,
        "a worker in which a hook is missing has to stop before it builds the model",
    ),
    Hook(
        f"{SRT}.model_executor.model_runner.ModelRunner.alloc_memory_pool",
        Kind.AFTER,
        layer.open_exchanges,
        "windows have to exist on all ranks, sized for the scheduler's limits, before the first forward pass",
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.moe.fuseep.forward_fuseep",
        Kind.AROUND,
        layer.forward,
        "this function is the whole MoE layer of the backend that --ascend-moe chooses",
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.quantization.moe_methods.NPUW8A8Int8MoEMethod.maybe_process_fuseep_weights",
        Kind.AROUND,
        keep_weights,
        "the backend that --ascend-moe chooses lays W8A8 weights out for SGLang's own fused kernel",
        Where.NPU,
    ),
    Hook(
        f"{SRT}.eplb.expert_location_updater.ExpertLocationUpdater.update",
        Kind.BEFORE,
        expert_location.agree_before_update,
        "all ranks have to want the same move of experts before one of them moves a weight",
    ),
    Hook(
        f"{SRT}.eplb.expert_distribution._SinglePassGatherer.init_new",
        Kind.AROUND,
        expert_location.gatherer,
        "SGLang's recorder has to count the rows that we dispatched, not what the router chose",
    ),
    Hook(
        f"{SRT}.eplb.expert_location.ExpertLocationMetadata.logical_to_all_physical",
        Kind.AROUND,
        expert_location.all_places,
        "SGLang loads the weights of only one of two places where a rank holds the same expert",
    ),
    *(
        Hook(
            f"{SRT}.managers.scheduler.Scheduler.get_internal_state",
            Kind.AFTER,
            function,
            "/server_info has to tell the state of the exchanges and what an instance is, which workers alone know",
        )
        for function in (live_state.report_state, pairing.report_instance)
    ),
    launcher_hook(
        f"{SRT}.entrypoints.engine.set_prometheus_multiproc_dir",
        Kind.AFTER,
        metrics.keep_values_in_files,
        "metrics of all processes meet in files, unless prometheus_client was imported before, as a hooked module does",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.process_batch_result",
        Kind.AFTER,
        metrics.export_after_batch,
        "the counters of the exchange have to reach the Prometheus endpoint while the server works",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.on_idle",
        Kind.BEFORE,
        metrics.export_when_idle,
        "the counters of the last batch have to reach the Prometheus endpoint when no other follows",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.init_disaggregation",
        Kind.AFTER,
        pairing.describe_instance,
        "a prefill or decode instance has to know what it is, to be compared with the other",
    ),
    launcher_hook(
        f"{SRT}.entrypoints.http_server._setup_and_run_http_server",
        Kind.BEFORE,
        pairing.add_instance_route,
        "what an instance says of itself has to be sealed for whoever asks, if there is a secret",
    ),
    Hook(
        f"{SRT}.disaggregation.common.conn.CommonKVManager.try_ensure_parallel_info",
        Kind.AFTER,
        pairing.require_prefill_fits,
        "keys and values of another model, format or layout would be taken for the right ones",
    ),
    *(
        host_launcher_hook(
            f"{SRT}.entrypoints.engine.Engine.{method}",
            Kind.AROUND,
            process_start.launch_by_forking,
            "each process that is spawned imports SGLang once more, and a host has few cores for that",
        )
        for method in ("_launch_scheduler_processes", "_launch_detokenizer_subprocesses")
    ),
    host_hook(
        f"{SRT}.managers.data_parallel_controller.DataParallelController.__init__",
        Kind.BEFORE,
        process_start.spawn_processes,
        "the controller starts schedulers from threads, where forking is unsafe",
    ),
    host_hook(
        f"{SRT}.distributed.bootstrap._resolve_dist_init_method",
        Kind.AROUND,
        fixes.meet_on_loopback,
        "torch's store listens on every interface of the machine, and gloo on that of its name",
    ),
    host_hook(
        f"{SRT}.utils.numa_utils.init_threads_binding",
        Kind.AROUND,
        fixes.cores_of_rank,
        "without SGLANG_CPU_OMP_THREADS_BIND SGLang refuses more ranks than NUMA nodes",
    ),
    host_hook(
        f"{SRT}.distributed.bootstrap._init_cpu_threads_env",
        Kind.REPLACE,
        fixes.limit_threads,
        "SGLang binds threads with a kernel that its PyPI build lacks, and ranks must not oversubscribe the cores",
    ),
    host_hook(
        f"{SRT}.utils.common.is_shm_available",
        Kind.REPLACE,
        fixes.no_shared_memory_all_reduce,
        "on aarch64 SGLang assumes a shared-memory all-reduce kernel that its PyPI build lacks",
    ),
    host_hook(
        f"{SRT}.model_executor.model_runner.adjust_config_with_unaligned_cpu_tp",
        Kind.AROUND,
        fixes.divide_heads_among_attention_ranks,
        "on a CPU SGLang adds heads for all ranks, also where each has all of them, and cannot load the weights then",
    ),
    host_hook(
        f"{SRT}.model_executor.forward_batch_info._is_cpu",
        Kind.SET,
        True,
        "batches that are padded across ranks would be copied through pinned memory, which needs an accelerator",
    ),
    host_hook(
        f"{SRT}.layers.attention.torch_native_backend.TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value",
        Kind.ADD,
        fixes.padded_sequence_length,
        "padded decode rows need a sequence length, and the torch_native backend names none",
    ),
    *(
        host_hook(
            f"{SRT}.distributed.parallel_state.reg_{function.__name__}",
            Kind.REPLACE,
            function,
            "for an out-of-tree platform SGLang registers this operator for PrivateUse1 tensors only",
        )
        for function in (fixes.reduce_scatter_tensor, fixes.all_gather_into_tensor)
    ),
    host_hook(
        f"{SRT}.layers.dp_attention.memcpy_func",
        Kind.REPLACE,
        fixes.copy_rows,
        "for an out-of-tree platform SGLang copies the rows of data-parallel attention with a Triton kernel",
    ),
    host_hook(
        "sglang.kernels.ops.elementwise.elementwise.fused_gate_sigmoid_mul_add",
        Kind.REPLACE,
        models.add_gated_shared_expert,
        "Qwen2-MoE adds its gated shared expert with a Triton kernel",
    ),
    host_hook(
        f"{SRT}.layers.rotary_embedding.factory.get_rope_cpu",
        Kind.AROUND,
        models.rope_without_scaling,
        "on the CPU SGLang builds the rotary embedding of latent attention in its scaled form only",
    ),
    host_hook(
        f"{SRT}.models.deepseek_common.attention_backend_handler.AttentionBackendRegistry.get_handler",
        Kind.AROUND,
        models.latent_attention_handler,
        "SGLang names no way to run latent attention with torch_native, and takes one whose prefill fails",
    ),
    *(
        host_hook(
            f"{SRT}.models.minimax_m2.{name}",
            Kind.REPLACE,
            function,
            "MiniMax-M2 normalises queries and keys with a Triton kernel",
        )
        for name, function in (
            ("rms_sumsq_serial", models.query_key_squares),
            ("rms_apply_serial", models.normalise_queries_keys),
        )
    ),
    host_hook(
        f"{SRT}.disaggregation.mooncake.conn.MooncakeKVSender.supports_host_tensor_indices",
        Kind.SET,
        False,
        "a prefill instance would copy the places of keys and values through pinned memory and record a CUDA event",
    ),
    host_hook(
        f"{SRT}.eplb.expert_distribution._ExpertDistributionRecorderReal._on_hook",
        Kind.AROUND,
        recorder.only_while_recording,
        "while it does not record, the recorder asks CUDA whether a graph is being captured",
    ),
    host_hook(
        f"{SRT}.distributed.device_communicators.shm_broadcast.shared_memory",
        Kind.SET,
        unnamed_memory,
        "25 MB in /dev/shm would stay behind every server, because SGLang ends its processes with SIGKILL",
    ),
    host_launcher_hook(
        f"{SRT}.entrypoints.engine.Engine._launch_scheduler_processes",
        Kind.BEFORE,
        unnamed_memory.make_load_reports,
        "the file of the load reports in /dev/shm would stay behind every server",
    ),
    host_hook(
        f"{SRT}.managers.load_snapshot.shm_path_for",
        Kind.AROUND,
        unnamed_memory.load_report_path,
        "SGLang's processes find the load reports by a path, which is that of a descriptor here",
    ),
    host_hook(
        f"{SRT}.managers.scheduler.configure_scheduler_process",
        Kind.BEFORE,
        unnamed_memory.share_no_progress_bars,
        "a semaphore in /dev/shm would stay behind every scheduler that shows a progress bar",
    ),
    host_hook(
        f"{SRT}.managers.data_parallel_controller.DataParallelController.event_loop",
        Kind.BEFORE,
        fixes.receive_without_spinning,
        "the controller of data-parallel attention would burn a core while no request comes",
    ),
    host_hook(
        f"{SRT}.managers.scheduler_components.idle_sleeper.IdleSleeper.maybe_sleep",
        Kind.AROUND,
        fixes.sleep_between_rendezvous,
        "with data-parallel attention an idle rank would keep the others waiting for up to a second",
    ),
    host_launcher_hook(
        f"{SRT}.managers.tokenizer_manager.TokenizerManager.dump_requests_before_crash",
        Kind.AROUND,
        fixes.dump_without_core_dumps,
        "after a crash SGLang waits over a minute for core dumps of GPUs that do not exist",
    ),
    host_hook(
        f"{SRT}.model_executor.model_runner_components.cuda_graph_setup.capture_cuda_graphs",
        Kind.BEFORE,
        host_decode.set_buckets,
        "SGLang chooses the batch sizes of graphs for torch.compile on a CPU, and does not know the lengths",
    ),
    host_hook(
        f"{SRT}.model_executor.model_runner_components.cuda_graph_setup.capture_decode_graph",
        Kind.AROUND,
        host_decode.capture_decode,
        "on a CPU SGLang captures decode steps with torch.compile only",
    ),
    host_hook(
        f"{SRT}.model_executor.forward_batch_info.ForwardMode.is_cpu_graph",
        Kind.REPLACE,
        host_decode.replays_when_idle,
        "on a CPU SGLang keeps a rank without requests out of the graphs that the other ranks replay",
    ),
    *(
        host_hook(
            f"{SRT}.distributed.parallel_state.GroupCoordinator.{function.__name__}",
            Kind.AROUND,
            function,
            "a graph on the host has to repeat the collectives of SGLang's own layers",
        )
        for function in (host_decode.all_reduce, host_decode.all_gather)
    ),
    Hook(
        f"{SRT}.model_executor.model_runner_components.cuda_graph_setup.capture_decode_graph",
        Kind.AROUND,
        npu_runner.capture_decode,
        "a step that no graph can hold has to be served eagerly, or refused if graphs are required",
        Where.NPU,
    ),
    Hook(
        f"{SRT}.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner._capture",
        Kind.BEFORE,
        npu_runner.prepare_capture,
        "before the first capture every window has to be in use, and all ranks must have the same batch sizes",
        Where.NPU,
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.graph_runner.npu_cudagraph_backend.NPUCudaGraphBackend.capture_one",
        Kind.AROUND,
        npu_runner.capture_bucket,
        "every step has to pass the guard on all ranks, and its MoE layers to take the form that a graph can hold",
        Where.NPU,
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.graph_runner.npu_graph_runner.NPUGraphRunner.execute",
        Kind.AROUND,
        npu_runner.replay,
        "what a replayed exchange found wrong is raised before tokens are sampled; replays are counted for the server's"
        " state",
        Where.NPU,
    ),
    *MEMORY_HOOKS,
    *REQUEST_HOOKS,
    *TRANSFER_HOOKS,
    *DEEP_EP_HOOKS,
)


def register() -> None:
    """Entry point of the group `sglang.srt.plugins`; called in every process of a server."""
    hooks.install(TABLE)
