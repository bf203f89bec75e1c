"""What SGLang lacks, or does for accelerators only, on a machine without one. One row a hook, with its reason.

What servers would leave behind is there with NPUs as well.
"""

from sglang_ascend_moe.serving.hooks import Hook, HookKind, Process, SglangFault, Where, host_hook, host_launcher_hook
from sglang_ascend_moe.serving.host import (
    dequantised_weights,
    earlier_platform,
    expert_recording,
    extended_attention,
    fixes,
    host_memory,
    host_models,
    kept_experts,
    padded_routing,
    process_start,
    speculation,
    unnamed_memory,
)
from sglang_ascend_moe.serving.sglang_release import DRAFTED

SRT = "sglang.srt"
KERNELS = "sglang.kernels.ops.speculative"

HOOKS: tuple[Hook, ...] = (
    *(
        host_launcher_hook(
            f"{SRT}.entrypoints.engine.Engine.{method}",
            HookKind.AROUND,
            process_start.launch_by_forking,
            "each process that is spawned imports SGLang once more, and a host has few cores for that",
        )
        for method in ("_launch_scheduler_processes", "_launch_detokenizer_subprocesses")
    ),
    host_hook(
        f"{SRT}.managers.data_parallel_controller.DataParallelController.__init__",
        HookKind.BEFORE,
        process_start.spawn_processes,
        "the controller starts schedulers from threads, where forking is unsafe",
    ),
    host_hook(
        f"{SRT}.distributed.bootstrap._resolve_dist_init_method",
        HookKind.AROUND,
        fixes.meet_on_loopback,
        "torch's store listens on every interface of the machine, and gloo on that of its name",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.utils.numa_utils.init_threads_binding",
        HookKind.AROUND,
        fixes.cores_of_rank,
        "without SGLANG_CPU_OMP_THREADS_BIND SGLang refuses more ranks than NUMA nodes",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.distributed.bootstrap._init_cpu_threads_env",
        HookKind.REPLACE,
        fixes.limit_threads,
        "SGLang binds threads with a kernel that its PyPI build lacks, and ranks must not oversubscribe the cores",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.distributed.parallel_state.init_model_parallel_group",
        HookKind.BEFORE,
        fixes.groups_without_nccl,
        "for an out-of-tree platform SGLang makes NCCL communicators, which need CUDA devices",
        mends=SglangFault(mended_in="0.5.23"),
    ),
    host_hook(
        f"{SRT}.utils.common.support_triton",
        HookKind.REPLACE,
        earlier_platform.runs_no_triton,
        "SGLang writes the places of keys and values with a Triton kernel for every attention backend that it does not"
        " know",
        mends=SglangFault(mended_in="0.5.22"),
    ),
    host_hook(
        f"{SRT}.utils.common.is_shm_available",
        HookKind.REPLACE,
        fixes.no_shared_memory_all_reduce,
        "on aarch64 SGLang assumes a shared-memory all-reduce kernel that its PyPI build lacks",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.model_executor.model_runner.adjust_config_with_unaligned_cpu_tp",
        HookKind.AROUND,
        fixes.divide_heads_among_attention_ranks,
        "on a CPU SGLang adds heads for all ranks, also where each has all of them, and cannot load the weights then",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.model_executor.forward_batch_info._is_cpu",
        HookKind.SET,
        True,
        "batches that are padded across ranks would be copied through pinned memory, which needs an accelerator",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.layers.attention.torch_native_backend.TorchNativeAttnBackend.get_cpu_graph_seq_len_fill_value",
        HookKind.ADD,
        fixes.padded_sequence_length,
        "padded decode rows need a sequence length, and the torch_native backend names none",
        mends=SglangFault(),
    ),
    *(
        host_hook(
            f"{SRT}.distributed.parallel_state.reg_{function.__name__}",
            HookKind.REPLACE,
            function,
            "for an out-of-tree platform SGLang registers this operator for PrivateUse1 tensors only",
            mends=SglangFault(),
        )
        for function in (fixes.reduce_scatter_tensor, fixes.all_gather_into_tensor, fixes.all_to_all_single)
    ),
    host_hook(
        f"{SRT}.layers.dp_attention.memcpy_func",
        HookKind.REPLACE,
        fixes.copy_rows,
        "for an out-of-tree platform SGLang copies the rows of data-parallel attention with a Triton kernel",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.layers.moe.topk.select_experts",
        HookKind.AROUND,
        padded_routing.route,
        "the torch form of SGLang's router refuses batches with padding",
        mends=SglangFault(mended_in="0.5.23"),
    ),
    host_hook(
        "sglang.kernels.ops.elementwise.elementwise.fused_gate_sigmoid_mul_add",
        HookKind.REPLACE,
        host_models.add_gated_shared_expert,
        "Qwen2-MoE adds its gated shared expert with a Triton kernel",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.layers.rotary_embedding.factory.get_rope_cpu",
        HookKind.AROUND,
        host_models.rope_without_scaling,
        "on the CPU SGLang builds the rotary embedding of latent attention in its scaled form only",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.models.deepseek_common.attention_backend_handler.AttentionBackendRegistry.get_handler",
        HookKind.AROUND,
        host_models.latent_attention_handler,
        "SGLang names no way to run latent attention with torch_native, and takes one whose prefill fails",
        mends=SglangFault(),
    ),
    *(
        host_hook(
            f"{SRT}.models.minimax_m2.{name}",
            HookKind.REPLACE,
            function,
            "MiniMax-M2 normalises queries and keys with a Triton kernel",
            mends=SglangFault(),
        )
        for name, function in (
            ("rms_sumsq_serial", host_models.query_key_squares),
            ("rms_apply_serial", host_models.normalise_queries_keys),
        )
    ),
    *(
        host_hook(
            target,
            HookKind.REPLACE,
            function,
            "SGLang drafts and verifies tokens with kernels that its PyPI build has for accelerators only",
            mends=SglangFault(),
            since=DRAFTED,
        )
        for target, function in (
            (f"{SRT}.speculative.eagle_utils.default_tree_mask_mode", speculation.tree_mask_mode),
            (f"{KERNELS}.spec_tree.build_tree_kernel_efficient_func", speculation.build_trees),
            (f"{KERNELS}.spec_tree.verify_tree_greedy_func", speculation.verify_greedily),
            (f"{KERNELS}.cache_locs.assign_draft_cache_locs_contiguous_func", speculation.draft_places),
            (f"{KERNELS}.cache_locs.fill_front_out_cache_loc_func", speculation.leading_places),
            (f"{KERNELS}.eagle.fill_accept_out_cache_loc_func", speculation.accepted_places),
            (f"{KERNELS}.eagle.fill_bonus_tokens_func", speculation.last_tokens),
            (f"{SRT}.mem_cache.allocation.assign_req_to_token_pool_func", speculation.reserve_places),
            (f"{SRT}.mem_cache.memory_pool.MHATokenToKVPool._init_kv_copy_and_warmup", speculation.move_natively),
        )
    ),
    *(
        host_hook(
            f"{SRT}.speculative.eagle_utils.{name}",
            HookKind.SET,
            function,
            "SGLang has no kernel here that verifies drafts of requests that are sampled, and would end",
            mends=SglangFault(),
            since=DRAFTED,
        )
        for name, function in (
            ("top_k_renorm_prob", speculation.keep_likeliest),
            ("top_p_renorm_prob", speculation.keep_nucleus),
            ("tree_speculative_sampling_target_only", speculation.sample_along_trees),
        )
    ),
    host_hook(
        f"{SRT}.layers.attention.torch_native_backend.TorchNativeAttnBackend.forward_extend",
        HookKind.AROUND,
        extended_attention.forward_extend,
        "the torch_native backend attends neither over trees of draft tokens nor from a rank's part of a text",
        mends=SglangFault(),
    ),
    *(
        host_hook(
            target,
            HookKind.AROUND,
            function,
            "the torch_native backend has no form for the steps of a draft",
            mends=SglangFault(),
        )
        for target, function in (
            (f"{SRT}.speculative.draft_utils.DraftBackendFactory.create_decode_backend", speculation.draft_attention),
            (
                f"{SRT}.speculative.draft_utils.DraftBackendFactory.create_draft_extend_backend",
                speculation.draft_extend_attention,
            ),
        )
    ),
    host_hook(
        f"{SRT}.model_executor.runner.eager_runner.EagerRunner._execute_extend_cp",
        HookKind.AROUND,
        fixes.extend_without_stream,
        "context-parallel prefill asks for the current CUDA stream, which a host does not have",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.speculative.spec_utils._select_top_k_tokens_later",
        HookKind.AROUND,
        speculation.choose_branches,
        "SGLang compiles a small function of its drafts: seconds of C++ compilation in every process",
    ),
    host_hook(
        f"{SRT}.speculative.base_spec_worker.BaseSpecWorker.alloc_memory_pool",
        HookKind.AROUND,
        speculation.prepare_draft_model,
        "a draft model that gets the model's embedding waits for a CUDA device",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.disaggregation.mooncake.conn.MooncakeKVSender.supports_host_tensor_indices",
        HookKind.SET,
        False,
        "a prefill instance would copy the places of keys and values through pinned memory and record a CUDA event",
        mends=SglangFault(),
        since="0.5.23",
    ),
    *(
        host_hook(
            target,
            HookKind.AROUND,
            function,
            "SGLang computes with these quantised weights on accelerators only",
            mends=SglangFault(),
        )
        for target, function in (
            (
                f"{SRT}.configs.model_config.ModelConfig._find_quant_modelslim_config",
                dequantised_weights.as_plain_model,
            ),
            (
                f"{SRT}.configs.model_config.ModelConfig._parse_quant_hf_config",
                dequantised_weights.as_plain_checkpoint,
            ),
            (
                f"{SRT}.model_loader.loader.DefaultModelLoader._get_weights_iterator",
                dequantised_weights.dequantised,
            ),
        )
    ),
    host_hook(
        f"{SRT}.model_loader.loader._initialize_model",
        HookKind.AROUND,
        kept_experts.build_model,
        "experts in int8 read half the bytes, and SGLang's CPU layer has room for floats only",
    ),
    host_hook(
        f"{SRT}.eplb.expert_distribution._ExpertDistributionRecorderReal._on_hook",
        HookKind.AROUND,
        expert_recording.only_while_recording,
        "while it does not record, the recorder asks CUDA whether a graph is being captured",
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.distributed.device_communicators.shm_broadcast.shared_memory",
        HookKind.SET,
        unnamed_memory,
        "25 MB in /dev/shm would stay behind every server, because SGLang ends its processes with SIGKILL",
        Where.HOST_AND_NPU,
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.distributed.parallel_state.shared_memory",
        HookKind.SET,
        unnamed_memory,
        "a name would stay in /dev/shm if a rank is killed while ranks find out whether they are on one machine",
        Where.HOST_AND_NPU,
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.entrypoints.engine.Engine._launch_scheduler_processes",
        HookKind.BEFORE,
        unnamed_memory.make_load_reports,
        "the file of the load reports in /dev/shm would stay behind every server",
        Where.HOST_AND_NPU,
        Process.LAUNCHER,
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.managers.load_snapshot.shm_path_for",
        HookKind.AROUND,
        unnamed_memory.load_report_path,
        "SGLang's processes find the load reports by a path, which is that of a descriptor here",
        Where.HOST_AND_NPU,
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.managers.scheduler.configure_scheduler_process",
        HookKind.BEFORE,
        unnamed_memory.share_no_progress_bars,
        "a semaphore in /dev/shm would stay behind every scheduler that shows a progress bar",
        Where.HOST_AND_NPU,
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.managers.data_parallel_controller.DataParallelController.event_loop",
        HookKind.BEFORE,
        fixes.receive_without_spinning,
        "the controller of data-parallel attention would burn a core while no request comes",
        mends=SglangFault(),
    ),
    host_hook(
        f"{SRT}.managers.scheduler_components.idle_sleeper.IdleSleeper.maybe_sleep",
        HookKind.AROUND,
        fixes.sleep_between_rendezvous,
        "with data-parallel attention an idle rank would keep the others waiting for up to a second",
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.managers.tokenizer_manager.TokenizerManager.dump_requests_before_crash",
        HookKind.AROUND,
        fixes.dump_without_core_dumps,
        "after a crash SGLang waits over a minute for core dumps of GPUs that do not exist",
        Where.HOST_AND_NPU,
        Process.LAUNCHER,
        mends=SglangFault(),
    ),
    host_launcher_hook(
        f"{SRT}.server_args.ServerArgs.resolve_once",
        HookKind.BEFORE,
        host_memory.limit_running_requests,
        "by default SGLang makes room for thousands of requests at a time, as for an accelerator",
    ),
    host_launcher_hook(
        f"{SRT}.entrypoints.engine.Engine._launch_scheduler_processes",
        HookKind.BEFORE,
        host_memory.reserve_for_server,
        "a model that does not fit would be noticed when the kernel kills a process, of this server or of another",
    ),
    host_launcher_hook(
        f"{SRT}.entrypoints.engine._wait_for_scheduler_ready",
        HookKind.AFTER,
        host_memory.release_start,
        "what a starting server has reserved is more than its ranks need in the end",
    ),
    host_hook(
        f"{SRT}.mem_cache.kv_cache_configurator.KVCacheConfigurator._profile_available_bytes",
        HookKind.AROUND,
        host_memory.rank_budget,
        "each rank would take its share of the whole machine",
    ),
    host_hook(
        f"{SRT}.mem_cache.kv_cache_configurator.get_available_gpu_memory",
        HookKind.AROUND,
        host_memory.available_for_keys_values,
        "what the machine has left is not what one rank may take of it",
    ),
    host_hook(
        f"{SRT}.mem_cache.kv_cache_configurator.KVCacheConfigurator._apply_token_constraints",
        HookKind.AROUND,
        host_memory.tokens_that_can_be_used,
        "keys and values for more tokens than the scheduler can use would take memory from others",
    ),
    host_hook(
        f"{SRT}.mem_cache.kv_cache_configurator.KVCacheConfigurator.configure",
        HookKind.AROUND,
        host_memory.allocate_untouched,
        "SGLang writes zeros into all keys and values at start-up",
    ),
)
