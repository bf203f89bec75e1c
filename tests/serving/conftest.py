"""One fork server and one set of stock answers per session; a summary of what was compared."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from sglang_ascend_moe.launch.comparison import TOLERANCES, Answer, Comparison, Tolerance, compare
from tests.serving.configurations import stock
from tests.serving.draft_models import PROMPTS, Drafted, write_drafted
from tests.serving.engines import Engine, ForkServer
from tests.serving.leftovers import MARK, Surroundings
from tests.serving.prompts import NEW_TOKENS, chosen_prompts

COMPARED = "compared with stock SGLang"
"""The property of a test under which `summarise` writes."""


def summarise(request: pytest.FixtureRequest, comparisons: list[Comparison]) -> None:
    """Add a line to the summary that closes a run, whichever process of it the test ran in."""
    close = sum(comparison.close_call is not None for comparison in comparisons)
    equal = sum(comparison.equal_tokens for comparison in comparisons)
    moved = max(comparison.logprob_difference for comparison in comparisons)
    line = f"{equal} tokens equal, {close} close calls, logprobs moved by <= {moved:.2g}"
    request.node.user_properties.append((COMPARED, f"{request.node.name}: {line}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tokens were compared, how many were close calls, and how far logprobs moved."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [line for report in reports for name, line in report.user_properties if name == COMPARED]
    if lines:
        terminalreporter.section("greedy tokens compared with stock SGLang")
    for line in dict.fromkeys(lines):
        terminalreporter.write_line(line)


@pytest.fixture
def surroundings(monkeypatch: pytest.MonkeyPatch) -> Surroundings:
    """What the processes of a test leave behind is told by a mark in their environment."""
    marked = Surroundings()
    monkeypatch.setenv(MARK, marked.mark)
    return marked


@pytest.fixture
def group() -> Iterator[dist.ProcessGroup]:
    """Of one rank, this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def fork_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """The process that has imported SGLang."""
    with ForkServer(tmp_path_factory.mktemp("logs")) as server:
        yield server


@pytest.fixture(scope="session")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drafted]:
    """The checkpoints of a family with drafts, written once."""
    known: dict[str, Drafted] = {}

    def write(family: str) -> Drafted:
        if family not in known:
            known[family] = write_drafted(tmp_path_factory.mktemp(f"drafted-{family}"), family)
        return known[family]

    return write


@pytest.fixture(scope="session")
def undrafted_answers(fork_server: ForkServer, drafted: Callable[[str], Drafted]) -> Callable[[str, str], list[Answer]]:
    """Those of stock SGLang on one rank, without drafts, for a family and a dtype."""
    known: dict[tuple[str, str], list[Answer]] = {}

    def answers(family: str, dtype: str) -> list[Answer]:
        if (family, dtype) not in known:
            with fork_server.start(stock(drafted(family).model, dtype)) as engine:
                known[family, dtype] = engine.generate(PROMPTS, NEW_TOKENS)
        return known[family, dtype]

    return answers


@pytest.fixture(scope="session")
def npu_fork_server(tmp_path_factory: pytest.TempPathFactory, npu_variables: dict[str, str]) -> Iterator[ForkServer]:
    """The same with emulated NPUs."""
    with ForkServer(tmp_path_factory.mktemp("npu-logs"), npu_variables) as server:
        yield server


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Token ids of every prompt."""
    return chosen_prompts()


@pytest.fixture(scope="session")
def stock_answers(fork_server: ForkServer, checkpoint: Path, prompts: list[list[int]]) -> Callable[[str], list[Answer]]:
    """Stock SGLang's answer to every prompt, one prompt after the other on one rank, for a dtype."""
    known: dict[str, list[Answer]] = {}

    def answers(dtype: str) -> list[Answer]:
        if dtype not in known:
            with fork_server.start(stock(checkpoint, dtype)) as engine:
                known[dtype] = engine.generate(prompts, NEW_TOKENS)
        return known[dtype]

    return answers


class CompareAll:
    """Compares an engine's answers with expected ones, to the last token, and writes the outcome into the summary.

    After a close call the engine continues from the expected token, so that the rest is compared as well.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def __call__(
        self,
        engine: Engine,
        prompts: list[list[int]],
        expected: list[Answer],
        rule: str | Tolerance,
        *,
        together: bool = True,
    ) -> list[Comparison]:
        """rule: how far answers may be apart, or the dtype that decides it."""
        tolerance = TOLERANCES[rule] if isinstance(rule, str) else rule
        answers = engine.generate(prompts, NEW_TOKENS, together=together)
        outcomes: list[Comparison] = []
        for prompt, wanted, found in zip(prompts, expected, answers, strict=True):
            outcomes.append(compare(wanted, found, tolerance))
            start = 0
            while outcomes[-1].close_call is not None and start + outcomes[-1].close_call + 1 < NEW_TOKENS:
                start += outcomes[-1].close_call + 1
                [found] = engine.generate([prompt + wanted.tokens[:start]], NEW_TOKENS - start)
                outcomes.append(compare(wanted.after(start), found, tolerance))
        summarise(self._request, outcomes)
        return outcomes


@pytest.fixture
def compare_all(request: pytest.FixtureRequest) -> CompareAll:
    return CompareAll(request)


@pytest.fixture
def record_comparisons(request: pytest.FixtureRequest) -> Callable[[list[Answer], list[Answer], str], list[Comparison]]:
    """Compares answers that are there already, up to the first close call, and writes the outcome into the summary."""

    def record(expected: list[Answer], found: list[Answer], dtype: str) -> list[Comparison]:
        outcomes = [compare(*pair, TOLERANCES[dtype]) for pair in zip(expected, found, strict=True)]
        summarise(request, outcomes)
        return outcomes

    return record
