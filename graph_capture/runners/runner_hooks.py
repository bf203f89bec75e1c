"""What is changed in the runners of SGLang that capture and replay decode steps. One row a hook, with its reason."""

from sglang_ascend_moe.graph_capture.runners import host_decode, npu_runner, replay_verdicts, update_fence
from sglang_ascend_moe.serving.hooks import Hook, HookKind, SglangFault, Where, host_hook

SRT = "sglang.srt"

HOOKS: tuple[Hook, ...] = (
    host_hook(
        f"{SRT}.model_executor.model_runner_components.cuda_graph_setup.capture_cuda_graphs",
        HookKind.BEFORE,
        host_decode.set_buckets,
        "SGLang chooses the batch sizes of graphs for torch.compile on a CPU, and does not know the lengths",
    ),
    host_hook(
        f"{SRT}.model_executor.model_runner_components.cuda_graph_setup.capture_decode_graph",
        HookKind.AROUND,
        host_decode.capture_decode,
        "on a CPU SGLang captures decode steps with torch.compile only",
    ),
    host_hook(
        f"{SRT}.model_executor.forward_batch_info.ForwardMode.is_cpu_graph",
        HookKind.REPLACE,
        host_decode.replays_when_idle,
        "on a CPU SGLang keeps a rank without requests out of the graphs that the other ranks replay",
    ),
    *(
        host_hook(
            f"{SRT}.distributed.parallel_state.GroupCoordinator.{function.__name__}",
            HookKind.AROUND,
            function,
            "a graph on the host has to repeat the collectives of SGLang's own layers",
        )
        for function in (host_decode.all_reduce, host_decode.all_gather)
    ),
    host_hook(
        f"{SRT}.speculative.eagle_worker_v2.EagleDraftWorker._capture_cuda_graphs",
        HookKind.AROUND,
        host_decode.capture_drafts,
        "on a CPU SGLang captures no drafts",
    ),
    Hook(
        f"{SRT}.model_executor.model_runner_components.cuda_graph_setup.capture_decode_graph",
        HookKind.AROUND,
        npu_runner.capture_decode,
        "a step that no graph can hold has to be served eagerly, or refused if graphs are required",
        Where.NPU,
    ),
    *(
        Hook(
            f"{SRT}.model_executor.runner.decode_cuda_graph_runner.DecodeCudaGraphRunner.{method}",
            HookKind.BEFORE,
            npu_runner.prepare_capture,
            "before the first capture every window has to be in use, and all ranks must have the same batch sizes",
            Where.NPU,
            since=since,
            until=until,
        )
        for method, since, until in (("_capture", "0.5.23", ""), ("capture", "", "0.5.23"))
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.graph_runner.npu_cudagraph_backend.NPUCudaGraphBackend.capture_one",
        HookKind.AROUND,
        npu_runner.capture_bucket,
        "every step has to pass the guard on all ranks, and its MoE layers to take the form that a graph can hold",
        Where.NPU,
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.graph_runner.npu_graph_runner.NPUGraphRunner.execute",
        HookKind.AROUND,
        npu_runner.replay,
        "replays are counted for the server's state, and what their exchanges found has to be looked at",
        Where.NPU,
    ),
    Hook(
        f"{SRT}.hardware_backend.npu.graph_runner.npu_cudagraph_backend.NPUCudaGraphBackend.replay_with_input_update",
        HookKind.AROUND,
        update_fence.update_after_replay,
        "a rank without requests would update a graph before its last replay has used the last update, and hang",
        Where.NPU,
        mends=SglangFault(mended_in="0.5.21"),
    ),
    *(
        Hook(
            f"{SRT}.managers.utils.{result}.copy_to_cpu",
            HookKind.AROUND,
            replay_verdicts.copy_with_tokens,
            "no token of a failed step may leave, and so what its exchanges found comes to the host with its tokens",
            Where.NPU,
        )
        for result in ("GenerationBatchResult", "EmbeddingBatchResult")
    ),
    Hook(
        f"{SRT}.managers.scheduler.Scheduler.process_batch_result",
        HookKind.BEFORE,
        replay_verdicts.check_uncopied,
        "without overlap SGLang reads tokens without copying them first, and what exchanges found is waited for",
        Where.NPU,
    ),
    *(
        Hook(
            f"{SRT}.managers.scheduler_pp_mixin.SchedulerPPMixin.{method}",
            HookKind.BEFORE,
            replay_verdicts.check_before_handing_on,
            "the first stage of a pipeline answers with tokens that the last hands on before it looks at its results",
            Where.NPU,
            since=since,
        )
        for method, since in (
            ("_pp_send_dict_to_next_stage", ""),
            ("_pp2_only_send_recv_output_tensors_npu", "0.5.20"),
        )
    ),
    Hook(
        f"{SRT}.speculative.eagle_worker_v2.EagleDraftWorker._capture_cuda_graphs",
        HookKind.AROUND,
        npu_runner.capture_drafts,
        "drafts that no graph can hold have to be made eagerly, or refused if graphs are required",
        Where.NPU,
    ),
    *(
        Hook(
            f"{SRT}.speculative.{target}.execute",
            HookKind.AROUND,
            function,
            "a replay of the draft model has to be compared between ranks and checked as one of the model is",
            Where.NPU,
        )
        for target, function in (
            ("eagle_draft_cuda_graph_runner.EAGLEDraftCudaGraphRunner", npu_runner.replay_drafts),
            ("eagle_draft_extend_cuda_graph_runner.EAGLEDraftExtendCudaGraphRunner", npu_runner.replay_draft_extend),
        )
    ),
)
