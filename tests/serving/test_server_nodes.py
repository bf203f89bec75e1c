"""A server of several nodes gives the tokens of one node, and ends on all of them when anything of it fails."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.serving import faulty_server, server_in_namespace
from tests.serving.clients import Traffic, ask
from tests.serving.draft_models import PROMPTS as DRAFTED_PROMPTS
from tests.serving.leftovers import NOTHING
from tests.serving.prompts import NEW_TOKENS
from tests.serving.server_in_namespace import NAMESPACE
from tests.serving.server_nodes import END_SECONDS, INTERFACE, READY_SECONDS, ServerNodes

ATTENTION = {"tp": [], "dp-attention": ["--dp-size", "2", "--enable-dp-attention"]}
GRAPHS = {"graphs": ["--cuda-graph-bs-decode", "4", "8"], "eager": ["--disable-cuda-graph"]}
ON_HOST = ["--device", "cpu", "--dtype", "float32"]
ON_NPU = ["--device", "npu", "--dtype", "bfloat16", "--mem-fraction-static", "0.5"]
TIMEOUT_SECONDS = 10.0
BUSY_SECONDS = 60.0
"""In place of END_SECONDS, where other tests share the machine."""
LIMITS = ["--max-running-requests", "8"]

pytestmark = pytest.mark.timeout(900)


def arguments_for(
    checkpoint: Path, ranks: int, device: Sequence[str] = ON_HOST, timeout: float = TIMEOUT_SECONDS
) -> list[str]:
    served = [
        "--model-path",
        str(checkpoint),
        "--tp-size",
        str(ranks),
        "--ascend-moe",
        "--ascend-moe-timeout",
        f"{timeout:g}",
    ]
    return [*served, *device, *LIMITS]


def tokens_of(url: str, prompts: list[list[int]]) -> list[list[int]]:
    return [ask(url, prompt, NEW_TOKENS).tokens for prompt in prompts]


def test_two_nodes_give_the_tokens_of_one_rank_and_end_together_by_name(
    surroundings, checkpoint, prompts, stock_answers, tmp_path
):
    expected = [answer.tokens for answer in stock_answers("float32")]
    arguments = arguments_for(checkpoint, 2, timeout=2 * BUSY_SECONDS)
    with ServerNodes([*arguments, *GRAPHS["graphs"]], 2, tmp_path) as server:
        server.wait_until_ready()
        assert tokens_of(server.url, prompts) == expected
        with Traffic(server.url, prompts, NEW_TOKENS) as traffic:
            traffic.wait_for_answer()
            [pid] = server.ranks(1)
            os.kill(pid, signal.SIGKILL)
            assert server.codes(BUSY_SECONDS) == [1, 1], server.logs()
        said = f"The server ends: node 1: sglang::scheduler_TP1_EP1 (process {pid}) was killed, or crashed"
        assert server.last_lines() == [said, said]
    assert surroundings.leftovers().processes == []


@pytest.mark.nightly
@pytest.mark.parametrize("graphs", GRAPHS)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize(("nodes", "ranks"), [(2, 2), (2, 4), (4, 4)], ids=["2x1", "2x2", "4x1"])
def test_greedy_tokens_equal_stock_sglang_on_one_rank(
    surroundings, checkpoint, prompts, stock_answers, tmp_path, nodes, ranks, attention, graphs
):
    expected = [answer.tokens for answer in stock_answers("float32")]
    arguments = [*arguments_for(checkpoint, ranks), *ATTENTION[attention], *GRAPHS[graphs]]
    with ServerNodes(arguments, nodes, tmp_path) as server:
        server.wait_until_ready()
        assert tokens_of(server.url, prompts) == expected
        server.launchers[0].interrupt()
        assert server.codes() == [0] * nodes, server.logs()
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("steps", GRAPHS)
def test_a_server_that_drafts_on_two_nodes_gives_the_tokens_of_one_rank(
    surroundings, drafted, undrafted_answers, tmp_path, attention, steps
):
    model = drafted("deepseek_v3").model
    expected = [answer.tokens for answer in undrafted_answers("deepseek_v3", "float32")]
    form = ["--speculative-algorithm", "NEXTN", "--speculative-num-steps", "2", "--speculative-eagle-topk", "1"]
    arguments = [*arguments_for(model, 2), *form, "--speculative-num-draft-tokens", "3"]
    with ServerNodes([*arguments, *ATTENTION[attention], *GRAPHS[steps]], 2, tmp_path) as server:
        server.wait_until_ready()
        assert [ask(server.url, prompt, len(expected[0])).tokens for prompt in DRAFTED_PROMPTS] == expected
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
def test_experts_that_move_between_nodes_keep_the_tokens(surroundings, checkpoint, prompts, stock_answers, tmp_path):
    expected = [answer.tokens for answer in stock_answers("float32")]
    moves = ["--ep-num-redundant-experts", "4", "--enable-eplb", "--eplb-rebalance-num-iterations", "40"]
    arguments = [*arguments_for(checkpoint, 2), *moves, *GRAPHS["eager"]]
    with ServerNodes(arguments, 2, tmp_path) as server:
        server.wait_until_ready()
        answers = [tokens_of(server.url, prompts) for _ in range(2)]
        assert answers == [expected] * 2
        assert "All ranks agreed to move experts" in server.launchers[1].log.read_text()
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
@pytest.mark.parametrize("ranks", [1, 2], ids=["stages of one", "stages of two"])
def test_a_stage_on_each_node_gives_the_tokens_of_one_rank_and_ends_by_name(
    surroundings, checkpoint, prompts, stock_answers, tmp_path, ranks
):
    expected = [answer.tokens for answer in stock_answers("float32")]
    arguments = [*arguments_for(checkpoint, ranks), *GRAPHS["graphs"], "--pp-size", "2"]
    with ServerNodes(arguments, 2, tmp_path) as server:
        server.wait_until_ready()
        assert tokens_of(server.url, prompts) == expected
        with Traffic(server.url, prompts, NEW_TOKENS) as traffic:
            traffic.wait_for_answer()
            [pid, *_] = server.ranks(1)
            os.kill(pid, signal.SIGKILL)
            assert server.codes() == [1, 1], server.logs()
        rank = "PP1" if ranks == 1 else "PP1_TP0_EP0"
        said = f"The server ends: node 1: sglang::scheduler_{rank} (process {pid}) was killed, or crashed"
        assert server.last_lines() == [said, said]
    assert surroundings.leftovers().processes == []


RANK_1 = "sglang::scheduler{dp}_TP1_EP1 (process {pid})"
FAULTS = {
    "rank of node 0 killed": (0, signal.SIGKILL, "node 0: sglang::scheduler{dp}_TP0_EP0 (process {pid}) was killed"),
    "rank of node 1 killed": (1, signal.SIGKILL, f"node 1: {RANK_1} was killed"),
    "rank of node 1 stopped": (1, signal.SIGSTOP, f"node 1: {RANK_1} "),
    "rank of node 1 raising": (1, None, f"node 1: {RANK_1} raised ValueError: {faulty_server.MESSAGE}"),
}  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize(("node", "number", "said"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_rank_that_fails_under_load_ends_all_nodes_by_name(
    surroundings, checkpoint, prompts, tmp_path, monkeypatch, attention, node, number, said
):
    monkeypatch.setenv(faulty_server.SIGN, str(tmp_path / "raise"))
    arguments = [*arguments_for(checkpoint, 2), *ATTENTION[attention], *GRAPHS["graphs"]]
    with ServerNodes(arguments, 2, tmp_path, module=faulty_server.__name__) as server:
        server.wait_until_ready()
        with Traffic(server.url, prompts[:8], NEW_TOKENS) as traffic:
            traffic.wait_for_answer()
            [pid] = server.ranks(node)
            if number is None:
                (tmp_path / "raise").touch()
            else:
                os.kill(pid, number)
            assert server.codes() == [1, 1], server.logs()
        dp = f"_DP{node}" if attention == "dp-attention" else ""
        cause = said.format(pid=pid, dp=dp)
        assert [line for line in server.last_lines() if not line.startswith(f"The server ends: {cause}")] == []
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("node", [0, 1])
def test_a_launcher_that_is_killed_under_load_ends_the_other_node_by_name(
    surroundings, checkpoint, prompts, tmp_path, attention, node
):
    with ServerNodes([*arguments_for(checkpoint, 2), *ATTENTION[attention], *GRAPHS["eager"]], 2, tmp_path) as server:
        server.wait_until_ready()
        with Traffic(server.url, prompts[:8], NEW_TOKENS) as traffic:
            traffic.wait_for_answer()
            os.kill(server.launchers[node].pid, signal.SIGKILL)
            codes = server.codes()
        assert codes[1 - node] == 1, server.logs()
        assert server.last_lines()[1 - node].startswith(f"The server ends: node {node}: the launcher was killed")
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_stop_of_node_0_stops_all_nodes_well(surroundings, checkpoint, prompts, tmp_path, attention, number):
    with ServerNodes([*arguments_for(checkpoint, 2), *ATTENTION[attention], *GRAPHS["eager"]], 2, tmp_path) as server:
        server.wait_until_ready()
        tokens_of(server.url, prompts[:2])
        os.kill(server.launchers[0].pid, number)
        assert server.codes() == [0, 0], server.logs()
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
def test_a_stop_of_another_node_ends_the_server_by_name(surroundings, checkpoint, prompts, tmp_path):
    with ServerNodes([*arguments_for(checkpoint, 2), *GRAPHS["eager"]], 2, tmp_path) as server:
        server.wait_until_ready()
        tokens_of(server.url, prompts[:2])
        server.launchers[1].interrupt()
        assert server.codes()[0] == 1, server.logs()
        assert server.last_lines()[0].startswith("The server ends: node 1: it was stopped")
    assert surroundings.leftovers() == NOTHING


REFUSED = {
    "other options": (["--ascend-moe-quant", "int8"], "--ascend-moe-quant is int8 on node 1"),
    "another batch": (["--chunked-prefill-size", "64"], "--chunked-prefill-size is 64 on node 1"),
    "a secret": (["--ascend-moe-secret-file", "{secret}"], "--ascend-moe-secret-file"),
}


@pytest.mark.nightly
@pytest.mark.parametrize(("given", "said"), REFUSED.values(), ids=REFUSED)
def test_a_node_that_was_started_otherwise_is_refused_by_name_before_anything_is_loaded(
    surroundings, checkpoint, tmp_path, given, said
):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    secret.chmod(0o600)
    given = [word.format(secret=secret) for word in given]
    with ServerNodes(arguments_for(checkpoint, 2), 2, tmp_path, of_node={1: given}) as server:
        codes = [launcher.wait_until_ended(READY_SECONDS) for launcher in server.launchers]
        assert 0 not in codes
        logs = [launcher.log.read_text() for launcher in server.launchers]
        assert [said in log for log in logs] == [True, True], server.logs()
        assert [log for log in logs if "Load weight" in log] == []
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
def test_a_node_that_does_not_come_is_named_on_the_others(surroundings, checkpoint, tmp_path):
    arguments = [*arguments_for(checkpoint, 4), "--ascend-moe-bring-up-timeout", "30"]
    with ServerNodes(arguments, 4, tmp_path, of_node={3: ["--no-such-flag"]}) as server:
        assert 0 not in [launcher.wait_until_ended(READY_SECONDS) for launcher in server.launchers]
        for launcher in server.launchers[:3]:
            assert "node 3 of 4 had not come to node 0 at 127.0.0.1:" in launcher.log.read_text()
    assert surroundings.leftovers() == NOTHING


@pytest.mark.nightly
@pytest.mark.parametrize("attention", ATTENTION)
def test_emulated_npus_on_two_nodes_give_the_tokens_of_one_node(
    surroundings, checkpoint, prompts, npu_variables, tmp_path, monkeypatch, attention
):
    for name, value in npu_variables.items():
        monkeypatch.setenv(name, value)
    common = [*arguments_for(checkpoint, 2, ON_NPU), *ATTENTION[attention], *GRAPHS["graphs"]]
    answers = []
    for nodes in (1, 2):
        folder = tmp_path / str(nodes)
        folder.mkdir()
        with ServerNodes(common, nodes, folder) as server:
            server.wait_until_ready()
            answers.append(tokens_of(server.url, prompts))
    assert answers[0] == answers[1]
    assert surroundings.leftovers() == NOTHING


class TwoNetworks:
    """This network and another namespace, which reach each other over a pair of interfaces and share no loopback."""

    def __init__(self) -> None:
        self.name = f"ascend-moe-{os.getpid()}"
        pair = [f"am{os.getpid() % 10000}{end}" for end in "ab"]
        subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self.here, self.there = f"{subnet}.1", f"{subnet}.2"
        self.interfaces = dict(zip((self.here, self.there), pair, strict=True))
        self._run("netns add {name}")
        self._run(f"link add {pair[0]} type veth peer name {pair[1]} netns {{name}}")
        self._run(f"addr add {self.here}/24 dev {pair[0]}")
        self._run(f"link set {pair[0]} up")
        self._run(f"-n {{name}} addr add {self.there}/24 dev {pair[1]}")
        self._run(f"-n {{name}} link set {pair[1]} up")
        self._run("-n {name} link set lo up")

    def cut(self) -> None:
        """Nothing passes any more; nobody is told."""
        self._run(f"link set {self.interfaces[self.here]} down")

    def remove(self) -> None:
        self._run("netns del {name}")

    def _run(self, command: str) -> None:
        subprocess.run(["ip", *command.format(name=self.name).split()], check=True, capture_output=True)


@pytest.fixture
def two_networks() -> Iterator[TwoNetworks]:
    networks = TwoNetworks()
    yield networks
    networks.remove()


@pytest.mark.nightly
@pytest.mark.parametrize("attention", ATTENTION)
def test_two_nodes_that_share_no_loopback_give_the_tokens_of_one_rank_and_notice_a_cut_network(
    checkpoint, prompts, stock_answers, tmp_path, two_networks, attention
):
    """Needs the rights of root, to make networks."""
    expected = [answer.tokens for answer in stock_answers("float32")]
    variables = {
        node: {INTERFACE: two_networks.interfaces[address], "SGLANG_HOST_IP": address}
        for node, address in enumerate((two_networks.here, two_networks.there))
    }
    variables[1][NAMESPACE] = two_networks.name
    arguments = [*arguments_for(checkpoint, 2), *ATTENTION[attention], *GRAPHS["graphs"]]
    with ServerNodes(
        arguments, 2, tmp_path, module=server_in_namespace.__name__, address=two_networks.here, variables=variables
    ) as server:
        server.wait_until_ready()
        assert tokens_of(server.url, prompts) == expected
        with Traffic(server.url, prompts[:8], NEW_TOKENS) as traffic:
            traffic.wait_for_answer()
            two_networks.cut()
            codes = [launcher.wait_until_ended(END_SECONDS + TIMEOUT_SECONDS) for launcher in server.launchers]
        assert codes == [1, 1], server.logs()
        assert [line for line in server.last_lines() if "node " not in line or "The server ends" not in line] == []
