"""`ascend-moe demo`: serve a small MoE model on two ranks and compare its answers with stock SGLang's on one.

Both servers are started one after the other, and asked the same questions over HTTP. The model has learned to answer
them, and was not shown these when it learned.
"""

import importlib
import sys
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.errors import Unsupported
from sglang_ascend_moe.launch.comparison import TOLERANCES, Comparison, Tolerance, compare
from sglang_ascend_moe.launch.openai_client import OpenAIClient, Reply
from sglang_ascend_moe.launch.parser import Parser
from sglang_ascend_moe.launch.servers.forked_server import ForkedServer, import_sglang, prepare_to_fork
from sglang_ascend_moe.launch.servers.memory_check import check_memory
from sglang_ascend_moe.launch.servers.preflight import check_flags
from sglang_ascend_moe.launch.servers.serve_request import request_of
from sglang_ascend_moe.launch.servers.server_process import Progress, ServerFailed, ServerProcess
from sglang_ascend_moe.launch.tiny_model.exercises import Exercise
from sglang_ascend_moe.launch.tiny_model.model_sizes import TRAINED_SIZES
from sglang_ascend_moe.serving.host_platform import obstacle
from sglang_ascend_moe.serving.launcher import interrupts
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT, CHECK_FAILED, OK, WRONG_USAGE
from sglang_ascend_moe.serving.launcher.output_folders import problem_with_folder
from sglang_ascend_moe.serving.options import Options

DTYPE = "bfloat16"
READY_SECONDS = 600.0
# A line of progress where the output is not a terminal.
PROGRESS_SECONDS = 15.0


class Question(NamedTuple):
    """One request: the route it goes to, and the exercise."""

    route: str
    exercise: Exercise

    @property
    def text(self) -> str:
        """What is sent."""
        return self.exercise.prompt if self.route == "completion" else self.exercise.question

    @property
    def answer_tokens(self) -> int:
        """A token for each digit of the answer, and the end of the turn."""
        return len(self.exercise.answer) + 1

    def is_answered(self, reply: Reply) -> bool:
        return reply.text.strip() == self.exercise.answer


QUESTIONS = (
    Question("completion", Exercise("sort 18306053", "00133568")),
    Question("completion", Exercise("sort 71610822", "01122678")),
    Question("completion", Exercise("copy 90431230", "90431230")),
    Question("completion", Exercise("copy 8636220", "8636220")),
    Question("completion", Exercise("35 + 38", "73")),
    Question("completion", Exercise("17 + 26", "43")),
    Question("chat", Exercise("sort 5184130", "0113458")),
    Question("chat", Exercise("copy 3623164", "3623164")),
)


class Setup(NamedTuple):
    """A server of the demo: what it is called and the flags that make it so."""

    title: str
    flags: list[str]


OURS = Setup("SGLang with --ascend-moe on two ranks, half of the experts on each", ["--ascend-moe", "--tp-size", "2"])
STOCK = Setup("stock SGLang on one rank, our MoE layer off", ["--tp-size", "1"])


class ProgressLine:
    """Shows how a server comes up: one line rewritten on a terminal; elsewhere a line per stage, and now and then."""

    def __init__(self) -> None:
        self._shown = Progress(-PROGRESS_SECONDS, "")

    def __call__(self, progress: Progress) -> None:
        line = f"      {progress.seconds:4.0f} s  waiting: {progress.stage}"
        if sys.stdout.isatty():
            print(f"\r\033[K{line}", end="", flush=True)
        elif progress.stage != self._shown.stage or progress.seconds - self._shown.seconds >= PROGRESS_SECONDS:
            self._shown = progress
            print(line, flush=True)

    def done(self, line: str) -> None:
        """Replace the line by a last one."""
        print(f"\r\033[K{line}" if sys.stdout.isatty() else line, flush=True)


def main(arguments: list[str]) -> int:
    """Run the demo. Returns 0 if all tokens are equal, 1 if not or if a server fails, 3 if it cannot run here.

    Raises KeyboardInterrupt when it was interrupted and the servers are stopped.
    """
    parser = Parser(prog="ascend-moe demo", description=__doc__.splitlines()[0].split(": ")[1])
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="write checkpoint and server logs there and keep them"
    )
    parser.add_argument("--device", choices=("cpu", "npu"), default="cpu", help="where both servers run")
    parsed = parser.parse_args(arguments)
    folder = parsed.keep
    if folder is not None and (problem := problem_with_folder(folder)):
        print(f"ascend-moe demo: --keep {folder}: {problem}; give a folder to write into", file=sys.stderr)
        return WRONG_USAGE
    prepare_to_fork()
    try:
        if parsed.device == "npu":
            from sglang_ascend_moe.serving.npu.machine_checks import device_name, refuse_machine_without_npu

            refuse_machine_without_npu(Options())
            print(f"Device: {device_name()}", flush=True)
        elif problem := obstacle():
            raise Unsupported(f"needs a machine without accelerator, or --device npu: {problem}")
    except Unsupported as error:
        print(f"ascend-moe demo: {error}", file=sys.stderr)
        return CANNOT
    # torch comes with it, whose import should not be interrupted by an exception.
    importlib.import_module("sglang_ascend_moe.launch.tiny_model.trained")
    if folder is not None:
        return run(folder, parsed.device)
    temporary = tempfile.TemporaryDirectory(prefix="ascend-moe-demo-")
    interrupts.put_away_too(temporary.cleanup)
    with temporary:
        return run(Path(temporary.name), parsed.device)


def run(folder: Path, device: str = "cpu") -> int:
    """The demo with checkpoint and logs in `folder`; see `main` for what is returned."""
    try:
        with interrupts.raised():
            checkpoint = prepare(folder, device)
        if device == "cpu":
            print("Importing SGLang, for both servers ...\n", flush=True)
            import_sglang()
        with interrupts.raised():
            found = answers_of(OURS, 1, checkpoint, folder / "ours.log", device)
            expected = answers_of(STOCK, 2, checkpoint, folder / "stock.log", device)
    except Unsupported as error:
        print(f"ascend-moe demo: {error}", file=sys.stderr)
        return CANNOT
    except ServerFailed as error:
        print(f"\nascend-moe demo: {error}", file=sys.stderr)
        return CHECK_FAILED
    outcomes = [
        compare(want.answer, have.answer, TOLERANCES[DTYPE]) for want, have in zip(expected, found, strict=True)
    ]
    print_table(outcomes, expected)
    return verdict(outcomes, found, TOLERANCES[DTYPE])


def prepare(folder: Path, device: str) -> Path:
    """Write the checkpoint into `folder` and return it. Raises `Unsupported` if the servers lack memory."""
    import torch

    from sglang_ascend_moe.launch.tiny_model.trained import write_trained

    threads = torch.get_num_threads()
    # None may be left where servers are forked.
    torch.set_num_threads(1)
    checkpoint = write_trained(folder / "checkpoint")
    torch.set_num_threads(threads)
    sizes = TRAINED_SIZES
    print(
        f"A small Qwen3-MoE: {sizes.layers} layers, {sizes.experts} experts, top-{sizes.topk}, hidden {sizes.hidden},"
        f" {DTYPE}. It has learned to sort, to copy and to add.\n"
    )
    for setup in (OURS, STOCK):
        check_memory([request_of(check_flags(server_arguments(setup, checkpoint, device)))])
    return checkpoint


def server_arguments(setup: Setup, checkpoint: Path, device: str = "cpu") -> list[str]:
    """The command line of a server, without its address."""
    same = ["--device", device, "--dtype", DTYPE, "--max-running-requests", "16"]
    # So much of an NPU's memory is not needed by far.
    same += ["--mem-fraction-static", "0.5"] if device == "npu" else []
    return ["--model-path", str(checkpoint), *same, *setup.flags]


def answers_of(setup: Setup, number: int, checkpoint: Path, log: Path, device: str) -> list[Reply]:
    """Start one server, ask every question, print the answers, and stop it. Raises ServerFailed.

    On a host it is forked from this process, which has imported SGLang for both.
    """
    from sglang_ascend_moe.launch.tiny_model.tokenizer import build_tokenizer

    print(f"[{number}/2] {setup.title}")
    print(f"      python -m sglang.launch_server --model-path {checkpoint.name} {' '.join(setup.flags)}", flush=True)
    line = ProgressLine()
    kind = ForkedServer if device == "cpu" else ServerProcess
    with kind(server_arguments(setup, checkpoint, device), log) as server:
        seconds = server.wait_until_ready(READY_SECONDS, line)
        line.done(f"      ready after {seconds:.0f} s at {server.url}")
        client = OpenAIClient(server.url, checkpoint.name, build_tokenizer(TRAINED_SIZES.vocab))
        ask: dict[str, Callable[[str, int], Reply]] = {"completion": client.complete, "chat": client.chat}
        replies = []
        for question in QUESTIONS:
            reply = ask[question.route](question.text, question.answer_tokens)
            wrong = "" if question.is_answered(reply) else f", which is wrong: {question.exercise.answer}"
            print(f"      {question.route:<10}  {question.text:<16} -> {reply.text}{wrong}", flush=True)
            replies.append(reply)
    print("      stopped\n" if server.ended_by_itself else "      had to be killed\n", flush=True)
    return replies


def print_table(outcomes: list[Comparison], expected: list[Reply]) -> None:
    """A line per question: equal tokens, close calls, the smallest margin of stock SGLang, how far logprobs moved."""
    print(f"{'tokens compared with stock SGLang':<46}{'equal':>8}{'close':>8}{'margin':>9}{'moved':>8}")
    for question, outcome, reply in zip(QUESTIONS, outcomes, expected, strict=True):
        margin = min(reply.answer.margin(position) for position in range(len(reply.answer.tokens)))
        close = "-" if outcome.close_call is None else f"at {outcome.close_call}"
        print(
            f"  {question.route:<10}  {question.text:<32}{outcome.equal_tokens:>5}/{question.answer_tokens}"
            f"{close:>8}{margin:>9.2f}{outcome.logprob_difference:>8.2f}"
        )
        if outcome.fault:
            print(f"              DIFFERS: {outcome.fault}")
    print(
        "  margin: smallest distance between stock SGLang's best and second logprob; moved: largest change of a logprob"
    )


def verdict(outcomes: list[Comparison], found: list[Reply], tolerance: Tolerance) -> int:
    """Say what the table means, and return the exit code for it."""
    faults = sum(bool(outcome.fault) for outcome in outcomes)
    close = sum(outcome.close_call is not None for outcome in outcomes)
    if close:
        rule = (
            f"close: a token may differ where its logprob is within {tolerance.margin} of stock SGLang's best and all"
            f" logprobs agree within {tolerance.logprob}; tokens after it are not compared."
        )
        print(textwrap.indent(rule, "  "))
    if faults:
        print(f"\nDIFFERENT: {faults} of {len(outcomes)} answers are not stock SGLang's")
        return CHECK_FAILED
    equal = sum(outcome.equal_tokens for outcome in outcomes)
    right = sum(question.is_answered(reply) for question, reply in zip(QUESTIONS, found, strict=True))
    print(f"\nEQUAL: {equal} tokens are stock SGLang's" + (f", {close} close calls" if close else ", every one"))
    print(f"{right} of {len(found)} answers are right")
    return OK


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
