"""Synchronisations and hand-overs of streams, each taken out of our code, with the test that has to notice it.

`python -m tests.npu.cann.report_mutations_npu` tries them all and prints who caught what with which seed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from tests.ascend.host_model import REPOSITORY
from tests.exchange.pool import RanksFailed
from tests.npu import emulated
from tests.npu.cann import build_cann
from tests.npu.cann.build_cann import Headers
from tests.npu.cann.conftest import NpuRanks
from tests.npu.cann.test_exchange_on_npu import (
    compare_with_host,
    leave_on_another_thread,
    move_between_streams,
    open_and_call_on_two_streams,
    refuse_on_another_stream,
    wait_for_a_slow_rank,
)
from tests.npu.cann.test_graphs_on_npu import (
    fail_in_a_capture,
    refuse_in_a_replay,
    replay_beside_calls,
    traced_epochs_are_right,
)
from tests.npu.cann.test_harmed_replays import name_the_culprit, tell_while_open

LATE = emulated.SEED_WHEN_AWAITED
SEEDS = (LATE, 1, 2, emulated.SEED_AT_ONCE)


class Mutation(NamedTuple):
    """Replaces `old`, which stands once in `file`, by `new`; `test(ranks, seed)` has to fail with one of `SEEDS`.

    needless: why nothing catches it; then no test may fail.
    """

    name: str
    file: str
    old: str
    new: str
    test: Callable[[NpuRanks, int], object]
    needless: str = ""


class Catch(NamedTuple):
    """The seed with which a test noticed the fault, None if it did with none; and in which words."""

    seed: int | None
    words: str


def calls(ranks: NpuRanks, seed: int) -> None:
    ranks.run(2, compare_with_host, 2, {}, seed=seed, deadline_s=20)


def streams(ranks: NpuRanks, seed: int) -> None:
    ranks.run(2, move_between_streams, seed=seed, deadline_s=20)


def refusals(ranks: NpuRanks, seed: int) -> None:
    ranks.run(2, refuse_on_another_stream, seed=seed, deadline_s=20)


def slow_ranks(ranks: NpuRanks, seed: int) -> None:
    wait_for_a_slow_rank(ranks, seed)


def replays(ranks: NpuRanks, seed: int) -> None:
    ranks.run(2, replay_beside_calls, 5, {}, seed=seed, deadline_s=20)


def refused_replays(ranks: NpuRanks, seed: int) -> None:
    ranks.run(2, refuse_in_a_replay, False, seed=seed, deadline_s=20)


def fetched_refusals(ranks: NpuRanks, seed: int) -> None:
    ranks.run(2, refuse_in_a_replay, True, seed=seed, deadline_s=20)


def failed_captures(ranks: NpuRanks, seed: int) -> None:
    ranks.run(2, fail_in_a_capture, seed=seed, deadline_s=20)


def killed(ranks: NpuRanks, seed: int) -> None:
    name_the_culprit(ranks, "killed", seed)


def tells(ranks: NpuRanks, seed: int) -> None:
    tell_while_open(ranks, seed)


def leaves(ranks: NpuRanks, seed: int) -> None:
    ranks.run(2, leave_on_another_thread, seed=seed, deadline_s=20)


SESSION = "sglang_ascend_moe/native/device_session.py"
BINDING = "kernels/ascend/device/torch_binding.cpp"
LIBRARY = "kernels/ascend/device/device_session.cpp"
VERDICTS = "kernels/ascend/device/verdicts.h"

IN_CAPTURE = "torch.npu.is_current_stream_capturing() and self._enter()"
"""A stream is only handed over in a capture."""

MUTATIONS = [
    Mutation(
        "a dispatch takes the stream of the call before it", SESSION,
        "if self._is_deferred(wait):\n            self._put(_DISPATCH",
        f"if not wait or {IN_CAPTURE}:\n            self._put(_DISPATCH",
        streams,
    ),
    Mutation(
        "a combine takes the stream of its dispatch", SESSION,
        "if self._is_deferred(wait):\n            call.take_out",
        f"if not wait or {IN_CAPTURE}:\n            call.take_out", streams,
    ),
    Mutation(
        "the rendezvous before a second combine takes the stream of the first", SESSION,
        "        self._enter()\n        super().rejoin", "        super().rejoin", streams,
    ),
    Mutation(
        "a refusal takes the stream of the call before it", SESSION,
        "        self._enter()\n        super().refuse", "        super().refuse", refusals,
    ),
    Mutation(
        "an opened session does not wait for its matrix", SESSION,
        "one.\n        self.check_replays()\n", "one.\n", open_and_call_on_two_streams,
    ),
    Mutation(
        "a plan takes the stream of the call before it", SESSION,
        "        self._enter()\n        return super().plan", "        return super().plan", streams,
        "the ids were counted on the same stream just before, and a plan reads nothing that torch has put on one",
    ),
    Mutation(
        "ids of a prefill are counted in the order of another stream", SESSION,
        "        self._enter()\n        return super().count_chunks", "        return super().count_chunks", streams,
    ),
    Mutation(
        "replays are checked on the stream that was captured", SESSION,
        "        self._enter()\n        self.unverified", "        self.unverified", refused_replays,
    ),
    Mutation(
        "a fault that was fetched is forgotten on the stream that was captured", SESSION,
        "            self._enter()\n            self._native.forget", "            self._native.forget",
        fetched_refusals,
    ),
    Mutation(
        "replays are not checked", SESSION,
        "if result := self._native.check_device():", "if result := 0:", refused_replays,
    ),
    Mutation(
        "the combine of a first dispatch that is refused reads what was in memory", SESSION,
        "        self._shared.positions.fill_(-1)\n", "", refused_replays,
    ),
    Mutation(
        "a call overtakes what torch has queued", BINDING,
        "stream.stream(!capturing)", "stream.stream(false)", calls,
    ),
    Mutation(
        "a captured launch overtakes what torch has queued", BINDING,
        """    at_npu::native::OpCommand::RunOpApiV2(kernel == 0 ? "moe_dispatch" : "moe_combine",
                                          [ready, stream]() -> int { return exchange_device_launch(&ready, stream); });
""",
        "    TORCH_CHECK(exchange_device_launch(&ready, stream) == 0, 'refused');\n".replace("'", '"'), replays,
    ),
    Mutation(
        "a call does not wait for its verdict", LIBRARY,
        "    wait();\n    write_down_steps(", "    write_down_steps(", calls,
    ),
    Mutation(
        "a check does not wait for the stream", LIBRARY,
        "    wait();\n    write_down_steps(", "    write_down_steps(", refused_replays,
    ),
    Mutation(
        "the times of steps are asked for while another stream runs", LIBRARY,
        '        require(aclrtSynchronizeDevice(), "aclrtSynchronizeDevice");\n', "", traced_epochs_are_right,
    ),
    Mutation(
        "the times of steps are fetched in the order of the default stream", LIBRARY,
        "steps_.fetch(stream, place);", "steps_.fetch(nullptr, place);", traced_epochs_are_right,
    ),
    Mutation(
        "a wait ends with its first look at signals", LIBRARY,
        "if (code == ACL_SUCCESS)", "if (code == ACL_SUCCESS || code == ACL_ERROR_RT_STREAM_SYNC_TIMEOUT)", slow_ranks,
    ),
    Mutation(
        "what comes from the device is read before it is there", LIBRARY,
        "    synchronise(stream_);\n    staged = staging_.at();", "    staged = staging_.at();", calls,
    ),
    Mutation(
        "a mailbox is filled in the order of another stream", LIBRARY,
        "bytes, ACL_MEMCPY_HOST_TO_DEVICE, stream_);", "bytes, ACL_MEMCPY_HOST_TO_DEVICE, beside_stream_.get());",
        calls,
    ),
    Mutation(
        "a status is read before it is there", LIBRARY,
        """               ACL_MEMCPY_DEVICE_TO_HOST, beside_stream_.get());
    synchronise(beside_stream_.get());
""",
        "               ACL_MEMCPY_DEVICE_TO_HOST, beside_stream_.get());\n", killed,
    ),
    Mutation(
        "a status that is kept is not waited for", LIBRARY,
        """               ACL_MEMCPY_HOST_TO_DEVICE, beside_stream_.get());
    synchronise(beside_stream_.get());
""",
        "               ACL_MEMCPY_HOST_TO_DEVICE, beside_stream_.get());\n", killed,
    ),
    Mutation(
        "a rank that tells the others does not wait until it is said", LIBRARY,
        "arguments), beside_stream_.get());\n    synchronise(beside_stream_.get());\n",
        "arguments), beside_stream_.get());\n", tells,
    ),
    Mutation(
        "a session ends before what it told the others in a capture", LIBRARY,
        "    aclrtSynchronizeStream(beside_stream_.get());\n    for", "    for", failed_captures,
    ),
    Mutation(
        "the watcher waits behind the kernel that it is to end", LIBRARY,
        """sizeof(uint64_t),
               ACL_MEMCPY_DEVICE_TO_HOST, beside_stream_.get());
    synchronise(beside_stream_.get());
""",
        """sizeof(uint64_t),
               ACL_MEMCPY_DEVICE_TO_HOST, stream_);
    synchronise(stream_);
""", killed,
    ),
    Mutation(
        "the watcher's thread does not choose the device", LIBRARY,
        '        require(aclrtSetDevice(device_), "aclrtSetDevice");\n        const', "        const", killed,
    ),
    Mutation(
        "a thread that tells the others does not choose the device", LIBRARY,
        '    require(aclrtSetDevice(device_), "aclrtSetDevice");\n    const BesideCaptures',
        "    const BesideCaptures", leaves,
    ),
    Mutation(
        "segments of a prefill are copied in the order of the default stream", LIBRARY,
        "segments.size() * sizeof(uint64_t), ACL_MEMCPY_HOST_TO_DEVICE, stream_);",
        "segments.size() * sizeof(uint64_t), ACL_MEMCPY_HOST_TO_DEVICE, nullptr);", streams,
    ),
    Mutation(
        "verdicts are copied in the order of the default stream", VERDICTS,
        "device_.at(), status_lines, ACL_MEMCPY_DEVICE_TO_HOST, stream);",
        "device_.at(), status_lines, ACL_MEMCPY_DEVICE_TO_HOST, nullptr);", streams,
    ),
    Mutation(
        "a fault that was reported is forgotten in the order of the default stream", VERDICTS,
        "EXCHANGE_LINE_BYTES, ACL_MEMCPY_HOST_TO_DEVICE, stream);",
        "EXCHANGE_LINE_BYTES, ACL_MEMCPY_HOST_TO_DEVICE, stream == nullptr ? stream : nullptr);", refused_replays,
    ),
    Mutation(
        "fetching verdicts overtakes what torch has queued", BINDING,
        """    at_npu::native::OpCommand::RunOpApiV2("moe_verdicts", [session, stream, place]() -> int {
        return exchange_device_fetch(session_at(session), stream, static_cast<uint32_t>(place));
    });
""",
        "    exchange_device_fetch(session_at(session), stream, static_cast<uint32_t>(place));\n", fetched_refusals,
    ),
    Mutation(
        "what was fetched is not looked at", SESSION,
        "if result := self._native.check_fetched(place):", "if result := 0 * place:", fetched_refusals,
    ),
]  # fmt: skip


def build_mutant(mutation: Mutation, libraries: Path, headers: Headers, folder: Path) -> Path:
    """The libraries with the fault, in `folder`; those of `libraries` themselves if it is in Python.

    Raises ValueError if the place of the fault is not there.
    """
    text = (REPOSITORY / mutation.file).read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.name}: {text.count(mutation.old)} places in {mutation.file} instead of one")
    if mutation.file.endswith(".py"):
        return libraries
    for path in (*libraries.glob("*.so"), *libraries.glob("*.o")):
        os.link(path, folder / path.name)
    shutil.copytree(REPOSITORY / "kernels", folder / "kernels")
    target = folder / mutation.file
    target.write_text(text.replace(mutation.old, mutation.new))
    build_cann.build_again(folder, headers, target)
    return folder


def exchange_source(rank_module: str, old: str, new: str) -> None:
    """In this process, what a module of ours has is made from its source with `old` replaced by `new`."""
    module = importlib.import_module(rank_module)
    path = Path(str(module.__file__))
    changed = ModuleType(rank_module)
    exec(compile(path.read_text().replace(old, new), str(path), "exec"), vars(changed))
    originals = {
        name: value for name, value in vars(module).items() if getattr(value, "__module__", None) == rank_module
    }
    for other in list(sys.modules.values()):
        for name, value in originals.items():
            if vars(other).get(name) is value:
                setattr(other, name, getattr(changed, name))


class FaultyRanks(NpuRanks):
    """Ranks whose code has the fault."""

    def __init__(self, libraries: Path, mutation: Mutation) -> None:
        super().__init__(libraries)
        self._mutation = mutation

    def _order(self, seed: int, program: Any, arguments: tuple[object, ...]) -> tuple[Any, ...]:
        order = super()._order(seed, program, arguments)
        return (with_fault, self._mutation.file, self._mutation.old, self._mutation.new, *order)


def with_fault(rank: Any, file: str, old: str, new: str, program: Any, *arguments: object) -> object:
    """A program of ranks in whose process the fault is."""
    if file.endswith(".py") and not hasattr(with_fault, "done"):
        exchange_source(file.removesuffix(".py").replace("/", "."), old, new)
        with_fault.done = True
    return program(rank, *arguments)


def try_mutant(mutation: Mutation, libraries: Path) -> Catch:
    """Whether the mutation's test fails, with the first seed with which it does."""
    for seed in SEEDS:
        ranks = FaultyRanks(libraries, mutation)
        try:
            mutation.test(ranks, seed)
        except (RanksFailed, AssertionError) as failure:
            return Catch(seed, last_words(str(failure)))
        finally:
            ranks.close()
    return Catch(None, "")


def last_words(text: str) -> str:
    """The line of a failure that says what was wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or "did not finish" in line or line.startswith("assert")]
    return (named or lines or [""])[-1][:160]
