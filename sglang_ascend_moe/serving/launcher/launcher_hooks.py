"""What is changed in the process that starts a server. One row a hook, with its reason."""

from sglang_ascend_moe.serving.hooks import Hook, HookKind, Process, SglangFault, Where, launcher_hook
from sglang_ascend_moe.serving.launcher import (
    arguments,
    control_requests,
    early_arguments,
    ending,
    http_processes,
    request_checks,
    socket_folder,
)
from sglang_ascend_moe.serving.launcher.early_resolution import UNTIL as RESOLVED_LATER
from sglang_ascend_moe.serving.stages import Stage, telling

SRT = "sglang.srt"

HOOKS: tuple[Hook, ...] = (
    launcher_hook(
        f"{SRT}.server_args.ServerArgs.add_cli_args",
        HookKind.AFTER,
        arguments.add_flags_to_parser,
        "the command line has to know the --ascend-moe flags",
    ),
    launcher_hook(
        f"{SRT}.server_args.ServerArgs.from_cli_args",
        HookKind.AFTER,
        arguments.attach_parsed_options,
        "the options have to ride to the workers on the server arguments",
        since=RESOLVED_LATER,
    ),
    launcher_hook(
        f"{SRT}.server_args.ServerArgs.from_cli_args",
        HookKind.AROUND,
        early_arguments.make_from_flags,
        "the options have to ride on the server arguments before these are resolved, which is while they are made",
        until=RESOLVED_LATER,
    ),
    *(
        launcher_hook(
            f"{SRT}.entrypoints.engine.Engine.server_args_class",
            HookKind.SET,
            staticmethod(made),
            "sglang.Engine has to accept the ascend_moe keyword arguments, and loads plugins only inside its"
            " constructor",
            since=since,
            until=until,
        )
        for made, since, until in (
            (arguments.engine_server_args, RESOLVED_LATER, ""),
            (early_arguments.engine_server_args, "", RESOLVED_LATER),
        )
    ),
    *(
        launcher_hook(
            f"{SRT}.server_args.ServerArgs.{method}",
            HookKind.AROUND,
            function,
            "the MoE backend has to be chosen, and unsupported settings refused, before workers start",
            since=since,
            until=until,
        )
        for method, function, since, until in (
            ("resolve_once", arguments.resolve_once, RESOLVED_LATER, ""),
            ("_run_resolution_pipeline", early_arguments.resolve, "", RESOLVED_LATER),
        )
    ),
    launcher_hook(
        f"{SRT}.server_args.ServerArgs.check_server_args",
        HookKind.AROUND,
        arguments.check_server_args,
        "what SGLang refuses of a command line would be a traceback",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.entrypoints.engine._wait_for_scheduler_ready",
        HookKind.AFTER,
        arguments.require_ready_workers,
        "a worker in which the plugin did not load must not serve with another MoE layer",
    ),
    Hook(
        f"{SRT}.server_args.PortArgs.init_new",
        HookKind.AFTER,
        socket_folder.move_names,
        "the sockets between SGLang's processes would stay in the temporary directory behind every server",
    ),
    *(
        launcher_hook(
            f"{SRT}.entrypoints.engine.Engine._launch_scheduler_processes",
            kind,
            function,
            "a worker has to tell the launcher what ended it, which SGLang's signal does not say",
            mends=SglangFault(),
        )
        for kind, function in (
            (HookKind.BEFORE, ending.make_room_for_reports),
            (HookKind.AFTER, ending.keep_schedulers),
        )
    ),
    *(
        launcher_hook(
            f"{SRT}.entrypoints.{function}",
            HookKind.BEFORE,
            telling(stage),
            "a command that starts a server shows how far it is, which only the log says",
        )
        for function, stage in (
            ("engine.Engine._launch_scheduler_processes", Stage.STARTING_RANKS),
            ("http_server._wait_and_warmup", Stage.WARMING_UP),
        )
    ),
    launcher_hook(
        f"{SRT}.entrypoints.engine.Engine._launch_detokenizer_subprocesses",
        HookKind.AFTER,
        ending.keep_detokenizers,
        "a detokenizer that dies has to be named",
        mends=SglangFault(),
    ),
    Hook(
        f"{SRT}.managers.scheduler.configure_scheduler_process",
        HookKind.AFTER,
        ending.say_title,
        "a rank that dies while it starts has to be named, also one that is the child of a controller",
        mends=SglangFault(),
    ),
    Hook(
        "sglang.utils.get_exception_traceback",
        HookKind.BEFORE,
        ending.report_exception,
        "SGLang only logs what ended a scheduler, a detokenizer, or the controller of data-parallel attention",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.utils.watchdog.SubprocessWatchdog._check_processes",
        HookKind.AROUND,
        ending.check_ranks,
        "a stopped rank would hold up the others for ever, and one that dies behind a controller may not be noticed",
        mends=SglangFault(discussed="#34233"),
    ),
    launcher_hook(
        f"{SRT}.entrypoints.engine._wait_for_scheduler_ready",
        HookKind.AROUND,
        ending.end_if_a_rank_dies,
        "a rank that is killed while the server starts ends it with a traceback that does not name the process",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.utils.common.kill_process_tree",
        HookKind.AROUND,
        ending.end_by_name,
        "SGLang ends the launcher with SIGKILL, so that neither exit code nor last line tell the cause",
        mends=SglangFault(discussed="#29284"),
    ),
    *(
        Hook(
            f"{SRT}.entrypoints.engine.Engine.{method}",
            HookKind.AROUND,
            ending.start_without_interrupts,
            "Ctrl-C in a terminal reaches every process, and each would show a traceback",
            Where.NPU,
            Process.LAUNCHER,
            mends=SglangFault(),
        )
        for method in ("_launch_scheduler_processes", "_launch_detokenizer_subprocesses")
    ),
    launcher_hook(
        f"{SRT}.entrypoints.http_server._setup_and_run_http_server",
        HookKind.AROUND,
        ending.stop_without_traceback,
        "SGLang's HTTP server heeds Ctrl-C and answers what it has been asked, but then ends with a traceback",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.entrypoints.http_server._wait_and_warmup",
        HookKind.AROUND,
        ending.warm_up_in_background,
        "a server that is stopped before it is warm waits two minutes for its own warm-up, which it does not answer",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.managers.io_struct.GenerateReqInput.normalize_batch_and_arguments",
        HookKind.AROUND,
        request_checks.read_request,
        "lists where one value belongs are answered with 500, and a large n takes all memory",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.managers.io_struct.EmbeddingReqInput.normalize_batch_and_arguments",
        HookKind.AFTER,
        request_checks.read_embedding,
        "a list of names for one prompt is answered with 500",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.managers.tokenizer_manager.TokenizerManager._validate_one_request",
        HookKind.BEFORE,
        request_checks.refuse_unusable_request,
        "an empty prompt, a token id that the model does not know and some parameters would end a rank",
        mends=SglangFault(discussed="#31908"),
    ),
    launcher_hook(
        f"{SRT}.managers.tokenizer_manager.TokenizerManager._create_tokenized_object",
        HookKind.AROUND,
        request_checks.make_parameters,
        "fields that are not as they should be are answered with 500",
        mends=SglangFault(),
    ),
    *(
        launcher_hook(
            f"{SRT}.entrypoints.openai.{method}",
            HookKind.AROUND,
            request_checks.read_chat,
            "template values that the chat template cannot take are answered with 500",
            mends=SglangFault(),
        )
        for method in (
            "serving_chat.OpenAIServingChat._convert_to_internal_request",
            "serving_tokenize.OpenAIServingTokenize._tokenize_chat_request",
        )
    ),
    *(
        launcher_hook(
            f"{SRT}.entrypoints.ollama.serving.OllamaServing.{method}",
            HookKind.AROUND,
            request_checks.begin_stream,
            "a stream that is refused would begin, and break off without a word",
            mends=SglangFault(),
        )
        for method in ("_stream_chat_response", "_stream_generate_response")
    ),
    launcher_hook(
        f"{SRT}.entrypoints.openai.serving_tokenize.OpenAIServingDetokenize._convert_to_internal_request",
        HookKind.BEFORE,
        request_checks.refuse_unknown_tokens,
        "tokens that the model does not know are answered with 500",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.entrypoints.http_server._setup_and_run_http_server",
        HookKind.BEFORE,
        request_checks.answer_refusals,
        "what is refused, an unknown parser and a text that it cannot read are answered with 500",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.entrypoints.http_server._setup_and_run_http_server",
        HookKind.BEFORE,
        http_processes.name_app,
        "further processes for HTTP load no plugins, and would not check requests",
    ),
    launcher_hook(
        f"{SRT}.managers.multi_tokenizer_mixin.TokenizerWorker.__init__",
        HookKind.BEFORE,
        http_processes.move_own_name,
        "the sockets of processes for HTTP would stay in the temporary directory behind every server",
    ),
    launcher_hook(
        "uvicorn.supervisors.multiprocess.Process.is_alive",
        HookKind.AROUND,
        http_processes.wait_for_start,
        "processes for HTTP that take more than ten seconds to start are killed, and started again, for ever",
        mends=SglangFault(),
    ),
    launcher_hook(
        "uvicorn.supervisors.multiprocess.Multiprocess.handle_quit",
        HookKind.ADD,
        ending.end_as_told,
        "a server with several processes for HTTP goes on without a rank that has failed",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.managers.tokenizer_manager.TokenizerManager._dispatch_to_scheduler",
        HookKind.BEFORE,
        control_requests.check_control_request,
        "a request that steers the server and that the ranks cannot serve would end it",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.managers.tokenizer_manager.TokenizerManager.configure_logging",
        HookKind.BEFORE,
        control_requests.check_control_request,
        "any client could have the requests of others written into any folder",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.managers.tokenizer_control_mixin.TokenizerControlMixin.init_weights_update_group",
        HookKind.AROUND,
        control_requests.join_update_group,
        "ranks would serve nobody for minutes while they look for an address at which nobody listens",
        mends=SglangFault(),
    ),
    launcher_hook(
        f"{SRT}.managers.tokenizer_manager.TokenizerManager._wait_for_model_update_from_disk",
        HookKind.AROUND,
        control_requests.update_after_others,
        "two updates of weights at once, while generation is paused, end the launcher",
        mends=SglangFault(),
    ),
    *(
        launcher_hook(
            f"{SRT}.managers.tokenizer_manager.TokenizerManager.{method}",
            HookKind.AROUND,
            function,
            "with data-parallel attention an abort of all requests ends some that come after it",
            mends=SglangFault(),
            since=since,
            until=until,
        )
        for method, function, since, until in (
            ("_send_one_request", control_requests.send_after_aborts, "0.5.20", ""),
            ("_send_batch_request", control_requests.send_after_aborts, "0.5.20", ""),
            # Before, what is sent is sent without a wait.
            ("_tokenize_one_request", control_requests.tokenize_and_hear_aborts, "", "0.5.20"),
            ("_batch_tokenize_and_process", control_requests.tokenize_and_hear_aborts, "", "0.5.20"),
        )
    ),
)
