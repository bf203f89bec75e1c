"""The command `ascend-moe`."""

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import OK, WRONG_USAGE

NOBODY_READS = 128 + signal.SIGPIPE
"""What shells say of a program that SIGPIPE ended: the output went to one that ended first, such as `head`."""


class Command(NamedTuple):
    """A subcommand: `run` takes its arguments and returns an exit code. has_more: the first of them is one, too."""

    run: Callable[[list[str]], int]
    help: str
    has_more: bool = False


def _serve(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.servers.serve import main

    return main(arguments)


def _demo(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.demo import main

    return main(arguments)


def _disagg(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.disagg.disagg_command import main

    return main(arguments)


def _doctor(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.doctor.doctor_command import main

    return main(arguments)


def _top(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.top.top_command import main

    return main(arguments)


def _trace(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.trace.trace_command import main

    return main(arguments)


def _monitoring(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.monitoring.monitoring_command import main

    return main(arguments)


def _bench(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.bench.bench_command import main

    return main(arguments)


def _plan(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.plan.plan_command import main

    return main(arguments)


def _adopt(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.adopt.adopt_command import main

    return main(arguments)


def _build_kernels(arguments: list[str]) -> int:
    from sglang_ascend_moe.launch.build_kernels import main

    return main(arguments)


COMMANDS = {
    "serve": Command(_serve, "SGLang's server with --ascend-moe"),
    "demo": Command(_demo, "serve a small model on two ranks and compare its tokens with stock SGLang"),
    "adopt": Command(_adopt, "an existing command line of SGLang, and what becomes of it with --ascend-moe"),
    "disagg": Command(_disagg, "prefill and decode on different servers behind a router: start, check, render", True),
    "doctor": Command(_doctor, "versions, kernels, and what became of every hook into SGLang"),
    "top": Command(_top, "a live view of a running server: rows, waits, imbalance of each rank"),
    "trace": Command(_trace, "the steps of all ranks as one timeline for Perfetto, and a summary"),
    "monitoring": Command(_monitoring, "a dashboard for Grafana, and alert rules for Prometheus"),
    "bench": Command(_bench, "measure the exchange against other ways to move the same rows", True),
    "build-kernels": Command(_build_kernels, "the kernels for Ascend devices, with CANN"),
    "plan": Command(_plan, "bytes and modelled latencies of configurations, before anything is allocated", True),
}


def usage() -> str:
    """The text of `ascend-moe --help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ascend-moe COMMAND [arguments]",
            "",
            "Expert-parallel communication without relay buffers for SGLang.",
            "",
            "commands (each has --help):",
            *lines,
            "",
            "exit codes: 0 well, 1 a check failed, 2 wrong usage, 3 the environment cannot do it, 130 interrupted",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run `ascend-moe` with `arguments` (default: those of the process) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    match arguments:
        case [name, *rest] if name in COMMANDS:
            return run(COMMANDS[name], name, rest)
        case ["-h" | "--help", *_]:
            print(usage())
            return OK
        case ["--version", *_]:
            from importlib.metadata import version

            print(f"sglang-ascend-moe {version('sglang-ascend-moe')}")
            return OK
        case [name, *_]:
            from sglang_ascend_moe.serving.launcher.suggestions import did_you_mean

            said = f"there is no command {name!r}{did_you_mean(name, list(COMMANDS))}"
        case _:
            said = f"a command is missing: {', '.join(COMMANDS)}"
    print(f"ascend-moe: {said}; ascend-moe --help says more", file=sys.stderr)
    return WRONG_USAGE


def run(command: Command, name: str, arguments: list[str]) -> int:
    """Run a subcommand, which is over at the first interrupt."""
    words = [name, *(arguments[:1] if command.has_more else ())]
    with interrupts.watched(f"ascend-moe {' '.join(words)}"):
        try:
            code = command.run(arguments)
            sys.stdout.flush()
        except KeyboardInterrupt:
            return interrupts.told()
        except BrokenPipeError:
            if _is_read(sys.stdout.fileno()):
                raise
            # What is left to be written, Python writes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return NOBODY_READS
        return code


def _is_read(descriptor: int) -> bool:
    """Whether a pipe that is written has a reader, if it is one."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


if __name__ == "__main__":
    raise SystemExit(main())
