"""What the ranks of a server do otherwise than in SGLang alone. One row a hook, with its reason."""

from sglang_ascend_moe.deep_ep import Buffer, Config
from sglang_ascend_moe.serving.hooks import Hook, HookKind, SglangFault, Where, launcher_hook
from sglang_ascend_moe.serving.stages import Stage, telling
from sglang_ascend_moe.serving.worker import (
    added_rows,
    deep_ep_client,
    divided_rows,
    expert_location,
    layer,
    live_state,
    lockstep,
    metrics,
    pairing,
    profiling,
    transfer_rooms,
    weight_updates,
    whole_batch_blocks,
)

SRT = "sglang.srt"
UPDATER = "model_executor.model_runner_components.weight_updater.WeightUpdater"

HOOKS: tuple[Hook, ...] = (
    *(
        Hook(
            f"{SRT}.{target}",
            kind,
            function,
            "the launcher has to learn that exchanges are open, with data-parallel attention from the controller only",
        )
        for target, kind, function in (
            ("managers.scheduler.Scheduler.get_init_info", HookKind.AFTER, layer.report_ready),
            ("observability.startup_time.aggregate_scheduler_startup_times", HookKind.AROUND, layer.report_all_ready),
        )
    ),
    *(
        Hook(
            target, kind, telling(stage), "a command that starts a server shows how far it is, which only the log says"
        )
        for target, kind, stage in (
            (f"{SRT}.managers.scheduler.configure_scheduler_process", HookKind.AFTER, Stage.CONNECTING),
            (f"{SRT}.model_executor.model_runner.ModelRunner.load_model", HookKind.BEFORE, Stage.LOADING),
            (f"{SRT}.model_executor.model_runner.ModelRunner.load_model", HookKind.AFTER, Stage.ALLOCATING),
            (f"{SRT}.model_executor.model_runner.ModelRunner.alloc_memory_pool", HookKind.AFTER, Stage.PREPARING),
        )
    ),
    Hook(
        f"{SRT}.model_executor.model_runner.ModelRunner.load_model",
        HookKind.BEFORE,
        layer.check_before_model,
        "a worker in which a hook is missing has to stop before it builds the model",
    ),
    Hook(
        f"{SRT}.model_executor.model_runner.ModelRunner.alloc_memory_pool",
        HookKind.AFTER,
        layer.open_exchanges,
        "windows have to exist on all ranks, sized for the scheduler's limits, before the first forward pass",
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.moe.fuseep.forward_fuseep",
        HookKind.AROUND,
        layer.forward,
        "this function is the whole MoE layer of the backend that --ascend-moe chooses",
    ),
    Hook(
        f"{SRT}.models.hunyuan.HunYuanSparseMoeBlock.__init__",
        HookKind.AFTER,
        whole_batch_blocks.tell_hunyuans_experts,
        "the size of a window follows from the number of experts of a token, which the block tells its router only",
    ),
    Hook(
        f"{SRT}.models.hunyuan.HunYuanSparseMoeBlock.forward",
        HookKind.AROUND,
        whole_batch_blocks.run_hunyuan,
        "the block takes the rows of the whole batch on every rank, and would sum complete results over the ranks",
    ),
    Hook(
        f"{SRT}.layers.layer_boundary.residual.batch.add_to_output",
        HookKind.AROUND,
        added_rows.add_own_rows,
        "Qwen3-VL adds features of images for all rows, of which a rank has a share between layers that exchange rows",
        mends=SglangFault(),
        since="0.5.21",
    ),
    Hook(
        f"{SRT}.model_executor.runner.eager_runner.prepare_cp_forward",
        HookKind.AFTER,
        divided_rows.gather_own_part,
        "tensor-parallel ranks would gather their part of a divided text into room for all parts, and fail",
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.eplb.expert_location_updater.ExpertLocationUpdater.update",
        HookKind.BEFORE,
        expert_location.agree_before_update,
        "all ranks have to want the same move of experts before one of them moves a weight",
    ),
    Hook(
        f"{SRT}.eplb.expert_distribution._SinglePassGatherer.init_new",
        HookKind.AROUND,
        expert_location.gatherer,
        "SGLang's recorder has to count the rows that we dispatched, not what the router chose",
        since="0.5.20",
    ),
    Hook(
        f"{SRT}.model_executor.model_runner.ModelRunner.forward",
        HookKind.AROUND,
        expert_location.record_no_drafts,
        "SGLang's recorder takes a draft model's passes for the model's, and experts move by what it counts",
    ),
    Hook(
        f"{SRT}.eplb.expert_location.ExpertLocationMetadata.logical_to_all_physical",
        HookKind.AROUND,
        expert_location.all_places,
        "SGLang loads the weights of only one of two places where a rank holds the same expert",
        mends=SglangFault(),
    ),
    *(
        Hook(
            f"{SRT}.managers.scheduler.Scheduler.get_internal_state",
            HookKind.AFTER,
            function,
            "/server_info has to tell the state of the exchanges and what an instance is, which workers alone know",
        )
        for function in (live_state.report_state, pairing.report_instance)
    ),
    launcher_hook(
        f"{SRT}.entrypoints.engine.set_prometheus_multiproc_dir",
        HookKind.AFTER,
        metrics.keep_values_in_files,
        "metrics of all processes meet in files, unless prometheus_client was imported before, as a hooked module does",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.process_batch_result",
        HookKind.AFTER,
        metrics.export_after_batch,
        "the counters of the exchange have to reach the Prometheus endpoint while the server works",
    ),
    *(
        Hook(
            f"{SRT}.managers.scheduler.{target}",
            kind,
            function,
            "/server_info has to tell the state of all pipeline stages, of which the first alone answers",
        )
        for target, kind, function in (
            ("dispatch_event_loop", HookKind.BEFORE, live_state.publish_from_now_on),
            ("Scheduler.process_batch_result", HookKind.AFTER, live_state.publish_after_batch),
            ("Scheduler.on_idle", HookKind.BEFORE, live_state.publish_when_idle),
        )
    ),
    Hook(
        f"{SRT}.managers.scheduler.dispatch_event_loop",
        HookKind.AROUND,
        lockstep.serve_in_step,
        "waits in SGLang's own collectives have no bound that anybody lives to see, and end without a name",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.run_batch",
        HookKind.BEFORE,
        lockstep.begin_batch,
        "ranks that share their attention have to run the same batch, or they wait for each other",
    ),
    Hook(
        f"{SRT}.model_executor.model_runner.ModelRunner.forward",
        HookKind.BEFORE,
        lockstep.begin_forward_pass,
        "with drafts a batch is several forward passes, and ranks have to take the same to make the same exchanges",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.process_batch_result",
        HookKind.AFTER,
        lockstep.note_result,
        "ranks sample each for itself, and one that gets another token goes on with wrong text",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.process_input_requests",
        HookKind.BEFORE,
        lockstep.compare_when_met,
        "a rank that has nothing to run any more has to see that the others have",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.on_idle",
        HookKind.BEFORE,
        metrics.export_when_idle,
        "the counters of the last batch have to reach the Prometheus endpoint when no other follows",
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.init_disaggregation",
        HookKind.AFTER,
        pairing.describe_instance,
        "a prefill or decode instance has to know what it is, to be compared with the other",
    ),
    launcher_hook(
        f"{SRT}.entrypoints.http_server._setup_and_run_http_server",
        HookKind.BEFORE,
        pairing.add_instance_route,
        "what an instance says of itself has to be sealed for whoever asks, if there is a secret",
    ),
    Hook(
        f"{SRT}.disaggregation.common.conn.CommonKVManager._register_topology_row",
        HookKind.BEFORE,
        pairing.leave_port_to_node_0,
        "requests go to the port of the rank that registers first, and only node 0 answers them",
        mends=SglangFault(),
        since="0.5.20",
    ),
    Hook(
        f"{SRT}.disaggregation.common.conn.CommonKVManager.try_ensure_parallel_info",
        HookKind.AFTER,
        pairing.require_prefill_fits,
        "keys and values of another model, format or layout would be taken for the right ones",
    ),
    Hook(
        f"{SRT}.disaggregation.common.conn.CommonKVManager.update_status",
        HookKind.AROUND,
        transfer_rooms.update_status,
        "two threads read and write the state of a request's transfer, and one may overwrite what the other wrote",
        mends=SglangFault(),
    ),
    *(
        Hook(
            f"{SRT}.managers.scheduler_components.profiler_manager.SchedulerProfilerManager.{method}",
            HookKind.AROUND,
            function,
            "a profile that is started twice is never written, and one that cannot be written ends the server",
            mends=SglangFault(),
        )
        for method, function in (("_profile", profiling.start_or_stop), ("_stop_profile", profiling.stop))
    ),
    Hook(
        f"{SRT}.managers.scheduler_components.profiler_manager.SchedulerProfilerManager._profile_batch_predicate",
        HookKind.AROUND,
        profiling.step,
        "a stage that is profiled as soon as another one has been has torch write into freed memory",
        mends=SglangFault(),
    ),
    *(
        Hook(
            f"{SRT}.managers.scheduler_components.profiler_manager.SchedulerProfilerManager.{method}",
            HookKind.AFTER,
            function,
            "a profile shows an MoE layer as one call: the steps of its exchange are written down beside it",
        )
        for method, function in (("_start_profile", profiling.trace_steps), ("_stop_profile", profiling.end_trace))
    ),
    *(
        Hook(
            f"{SRT}.{target}",
            HookKind.AROUND,
            function,
            "weights that a rank cannot take would end it, or leave ranks with different ones",
            mends=SglangFault(),
            since=since,
            until=until,
        )
        for target, function, since, until in (
            (f"{UPDATER}.update_weights_from_disk", weight_updates.update_from_disk, "", ""),
            (f"{UPDATER}.update_weights_from_tensor", weight_updates.update_from_tensors, "", ""),
            ("managers.tp_worker.BaseTpWorker.deserialize_own_rank", weight_updates.read_tensors, "0.5.21", ""),
            ("managers.tp_worker.BaseTpWorker._deserialize_own_rank", weight_updates.read_tensors, "", "0.5.21"),
            (f"{UPDATER}.init_weights_update_group", weight_updates.join_group, "", ""),
            (f"{UPDATER}.receive_weights_from_distributed", weight_updates.receive_from_group, "0.5.21", ""),
        )
    ),
    Hook(
        f"{SRT}.utils.common.init_custom_process_group",
        HookKind.AROUND,
        weight_updates.join_in_time,
        "a rank that waits for a group of others is ended by SGLang's watchdog",
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.layers.moe.token_dispatcher.deepep.Buffer",
        HookKind.ADD,
        Buffer,
        "SGLang's DeepEP dispatcher has to find a Buffer where no deep_ep is installed",
        Where.HOST,
    ),
    Hook(
        f"{SRT}.layers.moe.token_dispatcher.deepep.Config",
        HookKind.ADD,
        Config,
        "SGLang's DeepEP dispatcher has to find a Config where no deep_ep is installed",
        Where.HOST,
    ),
    Hook(
        f"{SRT}.layers.moe.token_dispatcher.deepep.use_deepep",
        HookKind.SET,
        True,
        "SGLang has looked for deep_ep before, and refuses its dispatcher without",
        Where.HOST,
    ),
    Hook(
        f"{SRT}.layers.moe.token_dispatcher.deepep.DeepEPBuffer.get_deepep_buffer",
        HookKind.REPLACE,
        deep_ep_client.make_buffer,
        "SGLang counts the multiprocessors of a CUDA device before it makes the Buffer",
        Where.HOST,
    ),
    Hook(
        f"{SRT}.layers.moe.token_dispatcher.deepep._DeepEPDispatcherImplNormal.combine_a",
        HookKind.REPLACE,
        deep_ep_client.begin_combine,
        "SGLang combines in normal mode only behind DeepGEMM, AITER or an NPU",
        Where.HOST,
    ),
    Hook(
        f"{SRT}.layers.moe.ep_moe.layer.DeepEPMoE.run_moe_core",
        HookKind.AROUND,
        deep_ep_client.run_experts,
        "SGLang computes experts behind DeepEP with CUDA kernels only",
        Where.HOST,
    ),
)
